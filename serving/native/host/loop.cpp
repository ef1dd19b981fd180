#include "host/loop.hpp"
