#define GRISTMILL_MINHASH minhash_avx512
#include "text_minhash.inc"
