#include "transport/ring.hpp"
