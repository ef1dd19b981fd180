#include "market/book.hpp"
