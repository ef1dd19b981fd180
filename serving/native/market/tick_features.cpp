#include "market/tick_features.hpp"
