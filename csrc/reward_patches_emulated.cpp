// The CUDA kernel of reward_patches on the CPU: every thread of every block, one after the other.
#include <vector>

#include "streamt1/reward_patches.cuh"

namespace streamt1 {
namespace {

using namespace patches;

template <typename T, int kCount, typename U>
void run(const PatchJob& job) {
  const Tile tile = tile_of(job);
  std::vector<Vector<uint32_t, 4>> memory(bytes_of(tile) / kAccess + 1);
  auto* shared = reinterpret_cast<uint8_t*>(memory.data());
  for (uint32_t block = 0; block < blocks_of(job, tile); ++block) {
    const Place at = place_block<kCount>(job, tile, block);
    for (int slot = 0; slot < (job.video ? kPatchFrames : 1); ++slot) {
      for (int i = 0; i < kThreads; ++i) read_tile<T, kCount>(job, tile, at, slot, i, shared);
      for (int i = 0; i < kThreads; ++i) narrow_tile(job, tile, at, i, shared);
      for (int i = 0; i < kThreads; ++i) shrink_tile(job, tile, at, slot, i, shared);
    }
    for (int i = 0; i < kThreads; ++i) write_tile<U>(job, tile, at, i, shared);
  }
}

template <typename T, int kCount>
void run_into(const PatchJob& job) {
  if (job.out_type == Pixel::kFloat32) run<T, kCount, float>(job);
  if (job.out_type == Pixel::kBFloat16) run<T, kCount, BFloat16>(job);
  if (job.out_type == Pixel::kFloat16) run<T, kCount, Float16>(job);
}

template <typename T>
void run_from(const PatchJob& job) {
  constexpr int kCount = kAccess / static_cast<int>(sizeof(T));
  aligned_rows<T>(job) ? run_into<T, kCount>(job) : run_into<T, 1>(job);
}

}  // namespace

int64_t reward_patches_shared_bytes(const PatchJob& job) {
  const Tile tile = tile_of(job);
  return tile.columns ? bytes_of(tile) : 0;
}

void reward_patches_emulated(const PatchJob& job) {
  if (job.type == Pixel::kFloat32) run_from<float>(job);
  if (job.type == Pixel::kBFloat16) run_from<BFloat16>(job);
  if (job.type == Pixel::kFloat16) run_from<Float16>(job);
  if (job.type == Pixel::kUInt8) run_from<uint8_t>(job);
}

}  // namespace streamt1
