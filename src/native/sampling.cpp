// gristmill.engine.sampler says what is computed; this is the same, a hundred times faster for large vocabularies.
//
// The race: token i wins if w_i / e_i is largest, with w_i its weight and e_i = -log(u_i). Since e_i >= 1 - u_i, a
// token whose w_i is below (1 - u_i) times the best ratio cannot win, and needs no logarithm.
#include "sampling.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels.h"
#include "pool.h"

namespace gristmill {
namespace {

constexpr double kGreedyBelow = 1e-5;
constexpr size_t kLanes = 1024;
constexpr size_t kBins = 4096;
constexpr float kBinsPerNat = 128;
constexpr double kLeastNoise = 1.0 / (uint64_t(1) << 33);
const float kNever = -std::numeric_limits<float>::infinity();

// Philox4x32-10 (Salmon et al. 2011).
void philox(uint64_t seed, uint64_t position, uint32_t first, uint32_t (&x)[4]) {
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  x[0] = first, x[1] = uint32_t(position), x[2] = uint32_t(position >> 32), x[3] = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t(0xD2511F53) * x[0], p1 = uint64_t(0xCD9E8D57) * x[2];
    x[0] = uint32_t(p1 >> 32) ^ x[1] ^ k0, x[2] = uint32_t(p0 >> 32) ^ x[3] ^ k1;
    x[1] = uint32_t(p1), x[3] = uint32_t(p0);
    k0 += 0x9E3779B9, k1 += 0xBB67AE85;
  }
}

// The lowest id of the largest.
size_t likeliest(const float* logits, size_t n) {
  float peaks[kLanes];
  for (float& peak : peaks) peak = kNever;
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (size_t j = 0; j < kLanes; ++j) peaks[j] = peaks[j] < logits[i + j] ? logits[i + j] : peaks[j];
  for (size_t j = 0; i + j < n; ++j) peaks[j] = std::max(peaks[j], logits[i + j]);
  const float largest = *std::max_element(peaks, peaks + kLanes);
  const size_t at = std::find(logits, logits + n, largest) - logits;
  return at < n ? at : 0;
}

// What is left of a row, lists in ascending order of id; every step looks at what the last one left.
struct Row {
  std::vector<float> scaled;   // logits / temperature, then of what is left
  std::vector<float> weights;  // exp(scaled - largest)
  std::vector<uint32_t> ids, inside;
  std::vector<uint16_t> bins;
  std::vector<double> mass;
  std::vector<float> sorted;
  float largest;

  void cut(const float* logits, size_t n, const Sampling& p) {
    const float temperature = float(p.temperature);
    float peaks[kLanes];  // the largest of every kLanes-th logit
    for (float& peak : peaks) peak = kNever;
    scaled.resize(n);
    size_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
      for (size_t j = 0; j < kLanes; ++j) {
        const float given = logits[i + j] / temperature, value = given == given ? given : kNever;  // NaN: never
        scaled[i + j] = value;
        peaks[j] = peaks[j] < value ? value : peaks[j];
      }
    for (size_t j = 0; i + j < n; ++j) {
      const float given = logits[i + j] / temperature;
      scaled[i + j] = given == given ? given : kNever;
      peaks[j] = std::max(peaks[j], scaled[i + j]);
    }
    largest = *std::max_element(peaks, peaks + kLanes);
    ids.clear();
    if (largest == kNever) return;
    float least = std::numeric_limits<float>::lowest();  // of what is left
    if (p.min_p > 0) least = std::max(least, float(double(largest) + std::log(p.min_p)));
    const size_t k = size_t(p.top_k);
    // k of the peaks are no smaller than the k-th of them, so nothing below it is among the k likeliest.
    if (k > 0 && k <= kLanes) {
      std::nth_element(peaks, peaks + (k - 1), peaks + kLanes, std::greater<float>());
      least = std::max(least, peaks[k - 1]);
    }
    keep_from(least, n);
    if (k > 0 && k < ids.size()) {
      sorted.assign(scaled.begin(), scaled.begin() + ids.size());
      std::nth_element(sorted.begin(), sorted.begin() + (k - 1), sorted.end(), std::greater<float>());
      drop_below(sorted[k - 1]);
    }
    weights.resize(ids.size());
    for (size_t j = 0; j < ids.size(); ++j) weights[j] = scaled[j] - largest;
    kernels_of(best_isa())->map(Function::exp, weights.data(), weights.data(), ids.size());
    if (p.top_p < 1) drop_tail(p.top_p);
  }

  // ids of the n logits that are at least `least`, and their values moved to the front.
  void keep_from(float least, size_t n) {
    ids.resize(n);
    size_t kept = 0;
    for (size_t i = 0; i < n; ++i) {
      const float value = scaled[i];
      ids[kept] = uint32_t(i), scaled[kept] = value;
      kept += value >= least;
    }
    ids.resize(kept);
  }

  void drop_below(float least) {
    size_t kept = 0;
    for (size_t j = 0; j < ids.size(); ++j)
      if (scaled[j] >= least) ids[kept] = ids[j], scaled[kept] = scaled[j], ++kept;
    ids.resize(kept);
  }

  // Keeps the likeliest tokens before which less than top_p of the mass lies; of equals the lower ids. Masses are
  // added up by bins of like values; only the bin that the edge falls in is sorted.
  void drop_tail(double top_p) {
    const size_t count = ids.size();
    bins.resize(count), mass.assign(kBins, 0);
    double total = 0;
    for (size_t j = 0; j < count; ++j) {
      const float at = (largest - scaled[j]) * kBinsPerNat;
      bins[j] = uint16_t(at < kBins - 1 ? at : kBins - 1);
      mass[bins[j]] += weights[j];
    }
    for (const double part : mass) total += part;
    const double wanted = top_p * total;
    size_t edge = 0;
    double before = 0;
    for (; edge + 1 < kBins && before + mass[edge] < wanted; ++edge) before += mass[edge];
    inside.clear();
    for (size_t j = 0; j < count; ++j)
      if (bins[j] == edge) inside.push_back(uint32_t(j));
    std::sort(inside.begin(), inside.end(),
              [&](uint32_t a, uint32_t b) { return scaled[a] != scaled[b] ? scaled[a] > scaled[b] : a < b; });
    for (const uint32_t j : inside) {
      if (before < wanted) before += weights[j];
      else bins[j] = kBins;  // beyond the edge
    }
    size_t kept = 0;
    for (size_t j = 0; j < count; ++j) {
      ids[kept] = ids[j], scaled[kept] = scaled[j], weights[kept] = weights[j];
      kept += bins[j] <= edge;
    }
    ids.resize(kept);
  }

  void draw(const Sampling& p, int64_t* token, double* logprob) const {
    double best = -1, total = 0;  // the largest w / e
    size_t winner = 0;
    uint32_t words[4], quartet = ~0u;
    for (size_t j = 0; j < ids.size(); ++j) {
      const double weight = weights[j];
      total += weight;
      // Noise is at least 2^-33: where even that could not win, it need not be known.
      if (weight < kLeastNoise * best) continue;
      if (ids[j] / 4 != quartet) quartet = ids[j] / 4, philox(p.seed, p.position, quartet, words);
      const double u = (double(words[ids[j] % 4]) + 0.5) / 4294967296.0;
      if (weight < (1 - u) * best) continue;
      const double ratio = weight / -std::log(u);
      if (ratio > best) best = ratio, winner = j;
    }
    *token = ids.empty() ? 0 : int64_t(ids[winner]);
    *logprob = best < 0 ? -std::numeric_limits<double>::infinity() : std::log(weights[winner] / total);
  }
};

}  // namespace

void sample(const float* logits, size_t rows, size_t vocabulary, const Sampling* params, int64_t* tokens,
            double* logprobs, int threads) {
  struct Call {
    const float* logits;
    size_t vocabulary;
    const Sampling* params;
    int64_t* tokens;
    double* logprobs;
  } call{logits, vocabulary, params, tokens, logprobs};
  parallel_chunks(
      threads, uint32_t(rows),
      [](void* context, uint32_t row) {
        const Call& c = *static_cast<Call*>(context);
        const float* logits = c.logits + row * c.vocabulary;
        if (c.params[row].temperature < kGreedyBelow) {
          c.tokens[row] = likeliest(logits, c.vocabulary);
          c.logprobs[row] = 0;
          return;
        }
        thread_local Row work;
        work.cut(logits, c.vocabulary, c.params[row]);
        work.draw(c.params[row], &c.tokens[row], &c.logprobs[row]);
      },
      &call);
}

}  // namespace gristmill
