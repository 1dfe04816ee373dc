// What one CUDA thread does to make patches. reward_patches.cu launches it;
// reward_patches_emulated.cpp runs the same functions thread by thread on the CPU. The contract is
// in kernels/reward_patches.py.
//
// A block makes one colour of a band of 28 output rows, `columns` wide, of one group of frames, so
// that a byte in between never leaves the chip. In turn, all threads together:
//     read    the input pixels of the tile, as bytes        [rows, pitch]
//     narrow  each of these rows to the output's width      [rows, columns]
//     shrink  the columns to 28 rows, in patch order        [2 * columns / 14, 2, 14, 14]
//     write   normalised, 16 bytes at a time
// with a barrier after each; the first three once for each half of the patches' time.
#pragma once

#include <cstdint>

#include "streamt1/pixels.h"
#include "streamt1/reward_patches.h"

// Loops whose length only the launch knows. Unrolled by the compiler's own choice they would spill.
#if defined(__CUDACC__)
#define STREAMT1_ROLLED _Pragma("unroll 1")
#define STREAMT1_BY_TWO _Pragma("unroll 2")
#else
#define STREAMT1_ROLLED
#define STREAMT1_BY_TWO
#endif

namespace streamt1 {
namespace patches {

using namespace pixels;

constexpr int kThreads = 256;
constexpr int kWarp = 32;
constexpr int kAccess = 16;  // bytes read or written at once where the addresses allow it
constexpr int kBand = kMergeSide;
constexpr int kBlock = kPatchFrames * kPatchPixels;  // values of one colour of a patch
constexpr int kRowsAtOnce = 4;                       // that share one load of the weights
constexpr int64_t kEveryGpu = 48 << 10;              // bytes of shared memory without asking
constexpr int64_t kLargest = 160 << 10;              // on sm_80 and later, when asked for

// Sizes of a block's tile, equal for all blocks of a launch.
struct Tile {
  int32_t columns;  // output columns, a multiple of 28; the last tile may have fewer
  int32_t rows;     // input rows at most, a multiple of kRowsAtOnce
  int32_t pitch;    // bytes of an input row, a multiple of 16
};

STREAMT1_BOTH int64_t narrow_at(const Tile& tile) { return int64_t{tile.rows} * tile.pitch; }

STREAMT1_BOTH int64_t values_at(const Tile& tile) {
  return narrow_at(tile) + int64_t{tile.rows} * tile.columns;
}

STREAMT1_BOTH int64_t bytes_of(const Tile& tile) {
  return values_at(tile) + int64_t{2} * (tile.columns / kPatchSide) * kBlock;
}

// What a block works on.
struct Place {
  int64_t group;
  int32_t colour;
  int32_t first_row, first_column;  // of the output
  int32_t columns;                  // that it makes
  int32_t in_row, in_row_end;
  int32_t in_column, in_column_end;
};

STREAMT1_BOTH uint32_t tiles_across(const PatchJob& job, const Tile& tile) {
  return (job.columns.resized + tile.columns - 1) / tile.columns;
}

// kCount: values that are read at once; the first column read is a multiple of it.
template <int kCount>
STREAMT1_BOTH Place place_block(const PatchJob& job, const Tile& tile, uint32_t block) {
  const uint32_t across = tiles_across(job, tile), down = job.rows.resized / kBand;
  Place at;
  at.first_column = static_cast<int32_t>(block % across) * tile.columns;
  at.first_row = static_cast<int32_t>(block / across % down) * kBand;
  at.colour = block / across / down % 3;
  at.group = block / across / down / 3;
  const int32_t left = job.columns.resized - at.first_column;
  at.columns = left < tile.columns ? left : tile.columns;
  at.in_row = job.rows.starts[at.first_row];
  at.in_row_end = job.rows.starts[at.first_row + kBand - 1] + job.rows.taps;
  at.in_column = job.columns.starts[at.first_column] / kCount * kCount;
  at.in_column_end = job.columns.starts[at.first_column + at.columns - 1] + job.columns.taps;
  return at;
}

template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Vector {
  T lane[kCount];
};

// A warp reads a row. kCount is 1, or the values in 16 bytes.
template <typename T, int kCount>
STREAMT1_BOTH void read_tile(const PatchJob& job, const Tile& tile, const Place& at, int slot,
                             int thread, uint8_t* shared) {
  using Values = Vector<T, kCount>;
  using Bytes = Vector<uint8_t, kCount>;
  const T* plane = static_cast<const T*>(job.frames) +
                   frame_of(job, at.group, slot) * job.frame_stride +
                   int64_t{at.colour} * job.rows.size * job.columns.size;
  STREAMT1_ROLLED
  for (int32_t y = at.in_row + thread / kWarp; y < at.in_row_end; y += kThreads / kWarp) {
    const T* row = plane + int64_t{y} * job.columns.size;
    uint8_t* to = shared + (y - at.in_row) * tile.pitch;
    STREAMT1_ROLLED
    for (int32_t x = at.in_column + thread % kWarp * kCount; x < at.in_column_end;
         x += kWarp * kCount) {
      const Values values = *reinterpret_cast<const Values*>(row + x);
      Bytes bytes;
      for (int i = 0; i < kCount; ++i) bytes.lane[i] = quantise(values.lane[i], job.range);
      *reinterpret_cast<Bytes*>(to + (x - at.in_column)) = bytes;
    }
  }
}

// A thread makes one column of kRowsAtOnce rows at a time.
STREAMT1_BOTH void narrow_tile(const PatchJob& job, const Tile& tile, const Place& at, int thread,
                               uint8_t* shared) {
  const uint32_t width = at.columns;
  const uint32_t items = (at.in_row_end - at.in_row + kRowsAtOnce - 1) / kRowsAtOnce * width;
  uint8_t* narrow = shared + narrow_at(tile);
  STREAMT1_ROLLED
  for (uint32_t item = thread; item < items; item += kThreads) {
    const uint32_t y = item / width * kRowsAtOnce, x = item % width;
    const int32_t column = at.first_column + static_cast<int32_t>(x);
    const uint8_t* from = shared + y * tile.pitch + (job.columns.starts[column] - at.in_column);
    int32_t total[kRowsAtOnce];
    for (int i = 0; i < kRowsAtOnce; ++i) total[i] = kWeightHalf;
    STREAMT1_BY_TWO
    for (int32_t tap = 0; tap < job.columns.taps; ++tap) {
      const int32_t weight = job.columns.weights[int64_t{tap} * job.columns.resized + column];
      for (int i = 0; i < kRowsAtOnce; ++i) total[i] += weight * from[i * tile.pitch + tap];
    }
    for (int i = 0; i < kRowsAtOnce; ++i) narrow[(y + i) * tile.columns + x] = pixel_of(total[i]);
  }
}

// A thread makes four neighbours of a row at a time. An even column and the next lie in one patch.
STREAMT1_BOTH void shrink_tile(const PatchJob& job, const Tile& tile, const Place& at, int slot,
                               int thread, uint8_t* shared) {
  using Word = Vector<uint8_t, 4>;
  using Pair = Vector<uint8_t, 2>;
  const uint32_t quads = at.columns / 4;
  const uint8_t* narrow = shared + narrow_at(tile);
  uint8_t* values = shared + values_at(tile) + slot * kPatchPixels;
  STREAMT1_ROLLED
  for (uint32_t item = thread; item < kBand * quads; item += kThreads) {
    const uint32_t y = item / quads, x = item % quads * 4;
    const int32_t row = at.first_row + static_cast<int32_t>(y);
    const uint8_t* from = narrow + (job.rows.starts[row] - at.in_row) * tile.columns + x;
    int32_t total[4];
    for (int i = 0; i < 4; ++i) total[i] = kWeightHalf;
    STREAMT1_BY_TWO
    for (int32_t tap = 0; tap < job.rows.taps; ++tap) {
      const int32_t weight = job.rows.weights[int64_t{tap} * job.rows.resized + row];
      const Word word = *reinterpret_cast<const Word*>(from + tap * tile.columns);
      for (int i = 0; i < 4; ++i) total[i] += weight * word.lane[i];
    }
    for (int i = 0; i < 4; i += 2) {
      const uint32_t patch = y / kPatchSide * (tile.columns / kPatchSide) + (x + i) / kPatchSide;
      uint8_t* to = values + patch * kBlock + y % kPatchSide * kPatchSide + (x + i) % kPatchSide;
      const Pair pair = {pixel_of(total[i]), pixel_of(total[i + 1])};
      *reinterpret_cast<Pair*>(to) = pair;
      if (!job.video) *reinterpret_cast<Pair*>(to + kPatchPixels) = pair;
    }
  }
}

STREAMT1_BOTH uint32_t raw(float value) { return bits_of(value); }

template <typename U>
STREAMT1_BOTH uint32_t raw(U value) {
  return value.bits;
}

// values[colour], without an address: indexing would copy the whole job to memory of the thread.
STREAMT1_BOTH float pick(const float (&values)[3], int32_t colour) {
  return colour == 0 ? values[0] : colour == 1 ? values[1] : values[2];
}

// A thread writes 16 bytes at a time; a patch's block is a whole number of them.
template <typename U>
STREAMT1_BOTH void write_tile(const PatchJob& job, const Tile& tile, const Place& at, int thread,
                              const uint8_t* shared) {
  constexpr int kCount = kAccess / static_cast<int>(sizeof(U));
  constexpr uint32_t kParts = kBlock / kCount;
  using Bytes = Vector<uint8_t, kCount>;
  using Words = Vector<uint32_t, kAccess / 4>;
  const uint32_t across = at.columns / kPatchSide;
  const uint8_t* values = shared + values_at(tile);
  const float scale = pick(job.scale, at.colour), shift = pick(job.shift, at.colour);
  STREAMT1_ROLLED
  for (uint32_t item = thread; item < 2 * across * kParts; item += kThreads) {
    const uint32_t part = item % kParts, patch = item / kParts;
    const uint32_t row = patch / across, column = patch % across;
    const uint32_t from = (row * (tile.columns / kPatchSide) + column) * kBlock + part * kCount;
    const Bytes bytes = *reinterpret_cast<const Bytes*>(values + from);
    Words out = {};
    for (int i = 0; i < kCount; ++i) {
      const float value = sum(product(static_cast<float>(bytes.lane[i]), scale), shift);
      const int bit = 8 * static_cast<int>(sizeof(U)) * i;
      out.lane[bit / 32] |= raw(write<U>(value)) << (bit % 32);
    }
    const int64_t place =
        at.group * patches_of(job) +
        place_of(job, at.first_row / kPatchSide + row, at.first_column / kPatchSide + column);
    static_cast<Words*>(job.out)[(place * 3 + at.colour) * kParts + part] = out;
  }
}

// Inputs that `step` outputs in a row read, at most.
inline int32_t reach_of(const ResizeAxis& axis, int32_t step) {
  int32_t most = 0;
  for (int32_t first = 0; first < axis.resized; first += step) {
    const int32_t last = first + step < axis.resized ? first + step - 1 : axis.resized - 1;
    const int32_t reach = axis.host_starts[last] - axis.host_starts[first] + axis.taps;
    most = reach > most ? reach : most;
  }
  return most;
}

// The widest of a few tiles that fits; columns is 0 where none does.
inline Tile tile_of(const PatchJob& job) {
  const int32_t rows = (reach_of(job.rows, kBand) + kRowsAtOnce - 1) / kRowsAtOnce * kRowsAtOnce;
  for (int32_t columns = 4 * kMergeSide; columns > 0; columns -= kMergeSide) {
    const int32_t reach = reach_of(job.columns, columns) + kAccess;  // a read may begin earlier
    const Tile tile = {columns, rows, (reach + kAccess - 1) / kAccess * kAccess};
    if (bytes_of(tile) <= (columns > kMergeSide ? kEveryGpu : kLargest)) return tile;
  }
  return {0, 0, 0};
}

inline uint32_t blocks_of(const PatchJob& job, const Tile& tile) {
  return static_cast<uint32_t>(groups_of(job) * 3 * (job.rows.resized / kBand) *
                               tiles_across(job, tile));
}

// Whether every row of the input can be read 16 bytes at a time.
template <typename T>
bool aligned_rows(const PatchJob& job) {
  constexpr int kCount = kAccess / static_cast<int>(sizeof(T));
  return reinterpret_cast<uintptr_t>(job.frames) % kAccess == 0 && job.columns.size % kCount == 0 &&
         job.frame_stride % kCount == 0;
}

}  // namespace patches
}  // namespace streamt1
