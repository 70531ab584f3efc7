#define GRISTMILL_MINHASH minhash_plain
#include "text_minhash.inc"

namespace gristmill::text {

#if defined(GRISTMILL_X86)
extern const MinHash minhash_avx2;
extern const MinHash minhash_avx512;
#endif

const MinHash& minhash_of(Isa isa) {
#if defined(GRISTMILL_X86)
  if (isa == Isa::avx2) return minhash_avx2;
  if (isa == Isa::avx512) return minhash_avx512;
#endif
  (void)isa;
  return minhash_plain;
}

}  // namespace gristmill::text
