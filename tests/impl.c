/* impl.c - the implementation, compiled once for every configuration. */
#define CONTRASTIVE_IMPLEMENTATION
#include "../contrastive.h"
