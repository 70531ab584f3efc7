// A pool of threads that shares out the chunks of one loop.
#pragma once

#include <cstdint>

namespace gristmill {

// Calls body(context, chunk) once for every chunk in [0, chunks), on up to `threads` threads including the
// caller's, and returns when all are done. Which thread takes which chunk is not fixed, so a chunk must not
// depend on it. Safe to call from several threads at once (a second caller works alone) and after fork().
void parallel_chunks(int threads, uint32_t chunks, void (*body)(void*, uint32_t), void* context);

}  // namespace gristmill
