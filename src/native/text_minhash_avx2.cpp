#define GRISTMILL_MINHASH minhash_avx2
#include "text_minhash.inc"
