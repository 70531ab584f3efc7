// A thread takes some weight rows and all rows of x: each weight is read from memory once. Within that, weight rows
// go in blocks that stay in the second-level cache while the tiles of x pass by; when x has few tiles, a block is
// so small that it stays in the first level.
#include "linear.h"

#include <algorithm>
#include <cstring>

#include "loops.h"
#include "scratch.h"

namespace gristmill {
namespace {

constexpr size_t kChunkBytes = 32 * 1024;   // of weights: the least that is worth another thread
constexpr size_t kBlockBytes = 256 * 1024;  // of weights beside which tiles of x have room in a 1 MB cache
constexpr size_t kCarryBytes = 16 * 1024;   // of sums that wait for the next piece
constexpr size_t kFewTiles = 4;             // of x; with more, multiply-adds matter and not the memory
constexpr size_t kRowStep = 24;             // a multiple of most tiles' weight rows

// Rows of x cut into tiles of nearly equal size, each packed as the kernels read it.
struct Tiles {
  size_t rows, count;
  size_t begin(size_t tile) const { return tile * (rows / count) + std::min(tile, rows % count); }
  int size(size_t tile) const { return int(begin(tile + 1) - begin(tile)); }
};

// [rows][in] -> [steps][rows][16], padded with zeros. So the rows of a tile are one stream in memory, and rows whose
// distance is a power of two do not push each other out of the cache.
void pack(const float* x, size_t stride, size_t in, int rows, float* to) {
  for (int m = 0; m < rows; ++m) {
    const float* from = x + m * stride;
    float* at = to + m * kLanes;
    size_t i = 0;
    for (; i + kLanes <= in; i += kLanes, at += rows * kLanes) std::memcpy(at, from + i, kLanes * sizeof(float));
    if (i < in) {
      std::memset(at, 0, kLanes * sizeof(float));
      std::memcpy(at, from + i, (in - i) * sizeof(float));
    }
  }
}

}  // namespace

void linear(const Kernels& k, const Linear* layers, size_t count, const float* x, size_t x_stride, size_t in,
            size_t rows, int threads) {
  if (rows == 0 || count == 0) return;
  const Tiles tiles{rows, (rows + k.tile_rows - 1) / k.tile_rows};
  const size_t width = whole_lanes(in);
  const float* packed = x;
  if (rows > 1 || in % kLanes) {
    static thread_local Scratch buffer;
    float* to = buffer.floats(rows * width);
    parallel_ranges(threads, tiles.count, 1 + kChunkBytes / (width * 4 * k.tile_rows), [&](size_t begin, size_t end) {
      for (size_t t = begin; t < end; ++t)
        pack(x + tiles.begin(t) * x_stride, x_stride, in, tiles.size(t), to + tiles.begin(t) * width);
    });
    packed = to;
  }

  size_t all = 0;
  for (size_t i = 0; i < count; ++i) all += layers[i].out;
  const size_t row_bytes = in * bytes_of(layers[0].weight.type);
  // At most about eight chunks a thread: enough to even out a busy core, few enough to cost nothing.
  const size_t least = std::max<size_t>(1, kChunkBytes / row_bytes / std::min<size_t>(rows, 16));
  const size_t even = all / (8 * size_t(std::max(threads, 1))) + 1;
  const size_t chunk_rows = (std::max(least, even) + kRowStep - 1) / kRowStep * kRowStep;
  const bool many = tiles.count > kFewTiles;
  const size_t pieces = many ? (in + k.piece - 1) / k.piece : 1;
  const size_t piece = whole_lanes((in + pieces - 1) / pieces);
  const size_t most = pieces > 1 ? kCarryBytes / (size_t(k.tile_rows) * kLanes * 4) : chunk_rows;
  const size_t fitting = many ? std::min(most, kBlockBytes / row_bytes) : tiles.count == 1 ? chunk_rows : 1;
  const size_t block = std::max(kRowStep, fitting / kRowStep * kRowStep);
  size_t chunks = 0;
  for (size_t i = 0; i < count; ++i) chunks += (layers[i].out + chunk_rows - 1) / chunk_rows;
  parallel(threads, chunks, [&](size_t chunk) {
    size_t i = 0;
    for (size_t here; chunk >= (here = (layers[i].out + chunk_rows - 1) / chunk_rows); ++i) chunk -= here;
    const Linear& layer = layers[i];
    const size_t stop = std::min(layer.out, (chunk + 1) * chunk_rows);
    static thread_local Scratch scratch;
    float* carry = pieces > 1 ? scratch.floats(block * size_t(k.tile_rows) * kLanes) : nullptr;
    for (size_t row = chunk * chunk_rows; row < stop; row += block)
      for (size_t t = 0; t < tiles.count; ++t)
        for (size_t begin = 0; begin < in; begin += piece) {
          const size_t first = tiles.begin(t);
          Dot dot{};
          dot.weight = layer.weight.data, dot.scale = layer.scale, dot.bias = layer.bias, dot.add = layer.add;
          dot.x = packed + first * width, dot.rows = tiles.size(t);
          dot.y = layer.y + first * layer.y_stride, dot.y_stride = layer.y_stride;
          dot.in = in, dot.begin = begin, dot.end = std::min(in, begin + piece);
          dot.carry = carry, dot.carry_row = row;
          k.dot[int(layer.weight.type)](dot, row, std::min(stop, row + block));
        }
  });
}

}  // namespace gristmill
