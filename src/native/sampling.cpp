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
constexpr size_t kLikeliest = 1024;  // top-p sorts so many, then twice as many, until their share suffices
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

struct Row {
  std::vector<float> scaled, weights, sorted;
  std::vector<uint32_t> ids;

  // scaled = logits / temperature, less what min-p, top-k and top-p cut; weights = exp(scaled - largest).
  void cut(const float* logits, size_t n, const Sampling& p) {
    scaled.resize(n), weights.resize(n);
    const float temperature = float(p.temperature);
    float largest = kNever;
    for (size_t i = 0; i < n; ++i) scaled[i] = logits[i] / temperature, largest = std::max(largest, scaled[i]);
    if (largest == kNever) return;
    if (p.min_p > 0) drop_below(float(double(largest) + std::log(p.min_p)));
    if (p.top_k > 0 && size_t(p.top_k) < n) {
      sorted = scaled;
      std::nth_element(sorted.begin(), sorted.begin() + (p.top_k - 1), sorted.end(), std::greater<float>());
      drop_below(sorted[p.top_k - 1]);
    }
    for (size_t i = 0; i < n; ++i) weights[i] = scaled[i] - largest;
    kernels_of(best_isa())->map(Function::exp, weights.data(), weights.data(), n);
    if (p.top_p < 1) drop_tail(p.top_p);
  }

  void drop_below(float least) {
    for (float& value : scaled)
      if (value < least) value = kNever;
  }

  // Keeps the likeliest tokens before which less than top_p of the mass lies; of equals the lower ids.
  void drop_tail(double top_p) {
    double total = 0;
    ids.clear();
    for (size_t i = 0; i < scaled.size(); ++i)
      if (scaled[i] > kNever) ids.push_back(uint32_t(i)), total += weights[i];
    const auto likelier = [&](uint32_t a, uint32_t b) {
      return scaled[a] != scaled[b] ? scaled[a] > scaled[b] : a < b;
    };
    double before = 0;
    size_t kept = 0;
    for (size_t most = kLikeliest; kept < ids.size(); most *= 2) {
      const size_t end = std::min(most, ids.size());
      if (end < ids.size()) std::nth_element(ids.begin() + kept, ids.begin() + end, ids.end(), likelier);
      std::sort(ids.begin() + kept, ids.begin() + end, likelier);
      for (; kept < end && (kept == 0 || before < top_p * total); ++kept) before += weights[ids[kept]];
      if (kept < end) break;
    }
    for (size_t i = kept; i < ids.size(); ++i) scaled[ids[i]] = kNever, weights[ids[i]] = 0;
  }

  void draw(const Sampling& p, int64_t* token, double* logprob) const {
    double best = -1, total = 0;  // the largest w / e
    size_t winner = 0;
    uint32_t words[4];
    for (size_t i = 0; i < scaled.size(); i += 4) {
      const size_t end = std::min(i + 4, scaled.size());
      bool any = false;
      for (size_t j = i; j < end; ++j) any = any || scaled[j] > kNever;
      if (!any) continue;
      philox(p.seed, p.position, uint32_t(i / 4), words);
      for (size_t j = i; j < end; ++j) {
        if (scaled[j] == kNever) continue;
        total += weights[j];
        const double u = (double(words[j - i]) + 0.5) / 4294967296.0;
        if (weights[j] < (1 - u) * best) continue;
        const double ratio = weights[j] / -std::log(u);
        if (ratio > best) best = ratio, winner = j;
      }
    }
    *token = int64_t(winner);
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
          c.tokens[row] = std::max_element(logits, logits + c.vocabulary) - logits;
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
