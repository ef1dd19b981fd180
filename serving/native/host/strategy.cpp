#include "host/strategy.hpp"
