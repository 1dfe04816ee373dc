#include "streamt1/slerp_noise.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "streamt1/dispatch.h"
#include "streamt1/philox.h"

namespace streamt1 {
namespace {

constexpr double kParallel = 1e-4;  // PARALLEL in kernels/slerp_noise.py
constexpr int kLanes = 16;          // accumulators of a sum: the same on every instruction set

template <typename Weight>
struct Weights {
  Weight keep;   // of the parent
  Weight fresh;  // of the draw
};

// Scalar products of a parent p and its draw e.
struct Dots {
  double pp = 0, ee = 0, pe = 0;
};

template <typename T, typename Weight>
STREAMT1_INLINE void mix(void* out, const void* parent, const float* draw, int count,
                         const Weights<Weight>& by) {
  auto* to = static_cast<T*>(out);
  const auto* from = static_cast<const T*>(parent);
  for (int i = 0; i < count; ++i) {
    const Weight kept = by.keep * static_cast<Weight>(to_float(from[i]));
    to[i] = from_float<T>(static_cast<float>(kept + by.fresh * static_cast<Weight>(draw[i])));
  }
}

template <typename Weight>
STREAMT1_INLINE void mix(void* out, const void* parent, Float type, const float* draw, int count,
                         const Weights<Weight>& by) {
  if (type == Float::kFloat32) return mix<float>(out, parent, draw, count, by);
  if (type == Float::kBFloat16) return mix<BFloat16>(out, parent, draw, count, by);
  mix<Float16>(out, parent, draw, count, by);
}

template <typename T>
STREAMT1_INLINE Dots dots(const void* parent, const float* draw, int count) {
  const auto* from = static_cast<const T*>(parent);
  double pp[kLanes] = {}, ee[kLanes] = {}, pe[kLanes] = {};
  for (int first = 0; first < count; first += kLanes) {
    const int lanes = std::min(kLanes, count - first);
    for (int i = 0; i < lanes; ++i) {
      const double p = to_float(from[first + i]), e = draw[first + i];
      pp[i] += p * p;
      ee[i] += e * e;
      pe[i] += p * e;
    }
  }
  Dots sum;
  for (int i = 0; i < kLanes; ++i) {
    sum.pp += pp[i];
    sum.ee += ee[i];
    sum.pe += pe[i];
  }
  return sum;
}

template <typename T>
STREAMT1_INLINE void store(void* out, const float* draw, int count) {
  auto* to = static_cast<T*>(out);
  for (int i = 0; i < count; ++i) to[i] = from_float<T>(draw[i]);
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void mix_tile(void* out, const void* parent, Float type, const float* draw,
                              int count, float keep, float fresh) {
  mix<float>(out, parent, type, draw, count, {keep, fresh});
}

STREAMT1_CLONES void turn_tile(void* out, const void* parent, Float type, const float* draw,
                               int count, double keep, double fresh) {
  mix<double>(out, parent, type, draw, count, {keep, fresh});
}

STREAMT1_CLONES Dots dots_tile(const void* parent, Float type, const float* draw, int count) {
  if (type == Float::kFloat32) return dots<float>(parent, draw, count);
  if (type == Float::kBFloat16) return dots<BFloat16>(parent, draw, count);
  return dots<Float16>(parent, draw, count);
}

STREAMT1_CLONES void store_tile(void* out, Float type, const float* draw, int count) {
  if (type == Float::kFloat32) return store<float>(out, draw, count);
  if (type == Float::kBFloat16) return store<BFloat16>(out, draw, count);
  store<Float16>(out, draw, count);
}

namespace {

// A tile of one row, its noise drawn.
struct Tile {
  int64_t row;
  int64_t number;
  int count;
  const float* draw;
  void* out;
  const void* parent;
};

int64_t tiles_of(const Noise& noise) { return (noise.elements + kTileValues - 1) / kTileValues; }

// Calls `work` with every tile of every row. Values do not know which thread made them.
template <typename Work>
void for_tiles(const Noise& noise, [[maybe_unused]] int threads, const Work& work) {
  const int64_t tiles = tiles_of(noise), bytes = noise.type == Float::kFloat32 ? 4 : 2;
#pragma omp parallel for num_threads(threads) if (threads > 1 && noise.rows * tiles > 64)
  for (int64_t index = 0; index < noise.rows * tiles; ++index) {
    const int64_t row = index / tiles, number = index % tiles, start = number * kTileValues;
    const int64_t parent = noise.parents ? noise.parents[row] : row;
    const auto count = static_cast<int>(std::min<int64_t>(kTileValues, noise.elements - start));
    alignas(64) float draw[kTileValues];
    philox_tile(draw, number, stream_of(noise.streams + 3 * row));
    const auto offset = [&](int64_t of) { return (of * noise.elements + start) * bytes; };
    const auto* previous = static_cast<const char*>(noise.previous);
    work(Tile{row, number, count, draw, static_cast<char*>(noise.out) + offset(row),
              previous ? previous + offset(parent) : nullptr});
  }
}

// How far to turn, from the products of whole rows. The cases are those of `slerp_reference`.
Weights<double> turn(const Dots& sum, double beta) {
  const double p = std::sqrt(sum.pp), e = std::sqrt(sum.ee);
  const double to_p = p > 0 ? 1 / p : 0, to_e = e > 0 ? 1 / e : 0;
  const double cosine = std::min(1.0, std::max(-1.0, sum.pe * to_p * to_e));
  const double angle = std::acos(cosine), sine = std::sqrt((1 - cosine) * (1 + cosine));
  const double rest = std::sqrt(1 - beta * beta), share = std::acos(beta) / std::acos(0.0);
  const double length = beta * beta * p + (1 - beta * beta) * e;
  const double size = std::sqrt(std::max(0.0, 1 + 2 * beta * rest * cosine));
  Weights<double> unit = {1, 0};
  if (sine > kParallel)
    unit = {std::sin((1 - share) * angle) / sine, std::sin(share * angle) / sine};
  else if (size > kParallel && angle > 1)
    unit = {beta / size, rest / size};
  return {unit.keep * to_p * length, unit.fresh * to_e * length};
}

}  // namespace

void normal_noise(const Noise& noise, int threads) {
  for_tiles(noise, threads,
            [&](const Tile& tile) { store_tile(tile.out, noise.type, tile.draw, tile.count); });
}

void blend_noise(const Noise& noise, double beta, int threads) {
  const auto keep = static_cast<float>(beta);
  const auto fresh = static_cast<float>(std::sqrt(1 - beta * beta));
  for_tiles(noise, threads, [&](const Tile& tile) {
    mix_tile(tile.out, tile.parent, noise.type, tile.draw, tile.count, keep, fresh);
  });
}

void renoise(const Noise& noise, const float* sigma, int threads) {
  for_tiles(noise, threads, [&](const Tile& tile) {
    const float fresh = sigma[tile.row];
    mix_tile(tile.out, tile.parent, noise.type, tile.draw, tile.count, 1 - fresh, fresh);
  });
}

void slerp_noise(const Noise& noise, double beta, int threads) {
  const int64_t tiles = tiles_of(noise);
  std::vector<Dots> parts(noise.rows * tiles);
  for_tiles(noise, threads, [&](const Tile& tile) {
    parts[tile.row * tiles + tile.number] =
        dots_tile(tile.parent, noise.type, tile.draw, tile.count);
  });
  std::vector<Weights<double>> by(noise.rows);
  for (int64_t row = 0; row < noise.rows; ++row) {
    Dots sum;
    for (int64_t tile = 0; tile < tiles; ++tile) {
      const Dots& part = parts[row * tiles + tile];
      sum.pp += part.pp;
      sum.ee += part.ee;
      sum.pe += part.pe;
    }
    by[row] = turn(sum, beta);
  }
  for_tiles(noise, threads, [&](const Tile& tile) {
    const auto [keep, fresh] = by[tile.row];
    turn_tile(tile.out, tile.parent, noise.type, tile.draw, tile.count, keep, fresh);
  });
}

}  // namespace streamt1
