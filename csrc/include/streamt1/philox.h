// Philox4x32-10 and normal values made from it. The contract is written in kernels/philox.py.
#pragma once

#include <array>
#include <cstdint>

namespace streamt1 {

using Words4 = std::array<uint32_t, 4>;
using Words3 = std::array<uint32_t, 3>;
using Words2 = std::array<uint32_t, 2>;

Words4 philox4x32_10(const Words4& counter, const Words2& key);

// Writes `elements` standard normal values to `out`, on at most `threads` threads. Word 0 of the
// counter is the block number, from 0; `counter` holds words 1, 2 and 3.
void philox_normal(float* out, int64_t elements, const Words2& key, const Words3& counter,
                   int threads);

}  // namespace streamt1
