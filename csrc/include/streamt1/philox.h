// Philox4x32-10 and normal values made from it. The contract is written in kernels/philox.py.
#pragma once

#include <array>
#include <cstdint>

namespace streamt1 {

using Words4 = std::array<uint32_t, 4>;
using Words3 = std::array<uint32_t, 3>;
using Words2 = std::array<uint32_t, 2>;

Words4 philox4x32_10(const Words4& counter, const Words2& key);

// What tells one row's draw from all others. Word 0 of the counter is the block number; `counter`
// holds words 1, 2 and 3.
struct Stream {
  Words2 key;
  Words3 counter;
};

// `row` is seed, chunk and draw.
Stream stream_of(const int64_t* row);

constexpr int kTileValues = 256;

// Writes the standard normal values number tile * kTileValues and following to `out`
// [kTileValues].
void philox_tile(float* out, int64_t tile, const Stream& stream);

}  // namespace streamt1
