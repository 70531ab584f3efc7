// Coded matrices: x is rounded once, then threads take strips of sixteen rows. A thread reads each of its weights from
// memory once; when x has several tiles, a few strips stay in the second-level cache while the tiles pass by.
#include "coded.h"

#include <algorithm>

#include "kernels.h"
#include "loops.h"
#include "scratch.h"

namespace gristmill {

extern const CodedKernels coded_plain;
#if defined(GRISTMILL_X86)
extern const CodedKernels coded_avx2;
extern const CodedKernels coded_vnni;
#endif

const CodedKernels& coded_kernels_of(Isa isa) {
#if defined(GRISTMILL_X86)
  __builtin_cpu_init();
  static const bool vnni = __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::avx512 && vnni) return coded_vnni;
  if (isa != Isa::scalar) return coded_avx2;
#else
  (void)isa;
#endif
  return coded_plain;
}

namespace {

constexpr size_t kChunkBytes = 16 * 1024;   // of weights: the least that is worth another thread
constexpr size_t kCachedBytes = 192 * 1024;  // of weights that stay in the second-level cache

struct Tile {
  size_t first;
  int rows, width;
  float* x;
};

}  // namespace

void coded_linear(Isa isa, const CodedLinear* layers, size_t count, const float* x, size_t x_stride, size_t rows,
                  bool rounded, int threads) {
  if (rows == 0 || count == 0) return;
  const CodedKernels& k = coded_kernels_of(isa);
  const size_t in = layers[0].matrix.in, blocks = (in + kBlock - 1) / kBlock;
  int widest = 1;
  for (int width : k.widths) widest = std::max(widest, width);
  const size_t tiles_count = (rows + size_t(widest) - 1) / size_t(widest);
  const size_t tile_floats = blocks * (rounded ? rounded_block(size_t(widest)) : float_block(size_t(widest)));
  static thread_local Scratch buffer;
  float* packed = buffer.floats(tiles_count * tile_floats);
  const auto tile = [&](size_t t) {
    const size_t first = t * (rows / tiles_count) + std::min(t, rows % tiles_count);
    const int size = int(rows / tiles_count + (t < rows % tiles_count));
    int width = widest;
    for (int w : k.widths)
      if (w >= size) width = std::min(width, w);
    return Tile{first, size, width, packed + t * tile_floats};
  };
  parallel_ranges(threads, tiles_count, 1 + 16 * 1024 / (in * size_t(widest)), [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      const Tile now = tile(t);
      const float* from = x + now.first * x_stride;
      if (rounded)
        k.round(from, x_stride, in, now.rows, now.width, now.x);
      else
        k.spread(from, x_stride, in, now.rows, now.width, now.x);
    }
  });

  size_t all = 0, most = 0;
  for (size_t i = 0; i < count; ++i) {
    all += (layers[i].matrix.out + kLanes - 1) / kLanes;
    most = std::max(most, layout_of(layers[i].matrix).strip);
  }
  // At most about eight chunks a thread: enough to even out a busy core, few enough to cost nothing.
  const size_t least = std::max<size_t>(1, kChunkBytes / most / std::min<size_t>(rows, 16));
  const size_t chunk_strips = std::max(least, all / (8 * size_t(std::max(threads, 1))) + 1);
  const size_t cached = tiles_count == 1 ? chunk_strips : std::max<size_t>(1, kCachedBytes / most);
  const auto chunks_of = [&](const CodedLinear& layer) {
    return ((layer.matrix.out + kLanes - 1) / kLanes + chunk_strips - 1) / chunk_strips;
  };
  size_t chunks = 0;
  for (size_t i = 0; i < count; ++i) chunks += chunks_of(layers[i]);
  parallel(threads, chunks, [&](size_t chunk) {
    size_t i = 0;
    for (size_t here; chunk >= (here = chunks_of(layers[i])); ++i) chunk -= here;
    const CodedLinear& layer = layers[i];
    const size_t strips = (layer.matrix.out + kLanes - 1) / kLanes;
    const size_t stop = std::min(strips, (chunk + 1) * chunk_strips);
    CodedDot dot{layer.matrix, layout_of(layer.matrix), nullptr, 0, 0, nullptr, layer.y_stride, layer.bias, layer.add};
    const auto run = (rounded ? k.dot : k.dot_float)[int(layer.matrix.coding)];
    for (size_t strip = chunk * chunk_strips; strip < stop; strip += cached)
      for (size_t t = 0; t < tiles_count; ++t) {
        const Tile now = tile(t);
        dot.x = now.x, dot.width = now.width, dot.rows = now.rows;
        dot.y = layer.y + now.first * layer.y_stride;
        run(dot, strip, std::min(stop, strip + cached));
      }
  });
}

}  // namespace gristmill
