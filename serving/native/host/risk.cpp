#include "host/risk.hpp"
