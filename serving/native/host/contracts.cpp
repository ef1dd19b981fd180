#include "host/contracts.hpp"
