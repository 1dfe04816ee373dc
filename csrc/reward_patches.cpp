#include "streamt1/reward_patches.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "streamt1/dispatch.h"

namespace streamt1 {
namespace {

using namespace pixels;

constexpr int kLanes = 16;             // rows resized together: one register of 32-bit sums, or two
constexpr int kBand = 4 * kMergeSide;  // output rows that one task makes
constexpr int64_t kPixelsWorthAThread = 1 << 14;

template <typename T>
STREAMT1_INLINE void quantise_all(uint8_t* out, const void* in, int64_t count, Range range) {
  const auto* from = static_cast<const T*>(in);
  for (int64_t i = 0; i < count; ++i) out[i] = quantise(from[i], range);
}

template <typename T>
STREAMT1_INLINE void normalise_all(void* out, const uint8_t* in, int64_t count, float scale,
                                   float shift) {
  auto* to = static_cast<T*>(out);
  for (int64_t i = 0; i < count; ++i)
    to[i] = write<T>(sum(product(static_cast<float>(in[i]), scale), shift));
}

int bytes_of(Pixel type) {
  if (type == Pixel::kUInt8) return 1;
  return type == Pixel::kFloat32 ? 4 : 2;
}

}  // namespace

// Outside the anonymous namespace: a clone needs a symbol that the loader can resolve.
STREAMT1_CLONES void quantise_line(uint8_t* out, const void* in, Pixel type, int64_t count,
                                   Range range) {
  if (type == Pixel::kFloat32) quantise_all<float>(out, in, count, range);
  if (type == Pixel::kBFloat16) quantise_all<BFloat16>(out, in, count, range);
  if (type == Pixel::kFloat16) quantise_all<Float16>(out, in, count, range);
}

STREAMT1_CLONES void normalise_line(void* out, Pixel type, const uint8_t* in, int64_t count,
                                    float scale, float shift) {
  if (type == Pixel::kFloat32) normalise_all<float>(out, in, count, scale, shift);
  if (type == Pixel::kBFloat16) normalise_all<BFloat16>(out, in, count, scale, shift);
  if (type == Pixel::kFloat16) normalise_all<Float16>(out, in, count, scale, shift);
}

// kLanes rows to one of their pixels side by side: out [size, kLanes].
STREAMT1_CLONES void turn(uint8_t* out, const uint8_t* const* rows, int64_t size) {
  const uint8_t* lines[kLanes];
  for (int i = 0; i < kLanes; ++i) lines[i] = rows[i];
  for (int64_t x = 0; x < size; ++x)
    for (int i = 0; i < kLanes; ++i) out[x * kLanes + i] = lines[i][x];
}

// And back: in [size, kLanes] -> out [kLanes, size].
STREAMT1_CLONES void turn_back(uint8_t* out, const uint8_t* in, int64_t size) {
  for (int i = 0; i < kLanes; ++i)
    for (int64_t x = 0; x < size; ++x) out[i * size + x] = in[x * kLanes + i];
}

// in [size, kLanes] -> out [resized, kLanes]: turned rows are read in order, where one row's
// windows overlap and jump.
STREAMT1_CLONES void resize_rows(uint8_t* out, const uint8_t* in, const int32_t* starts,
                                 const int32_t* weights, int32_t taps, int32_t resized) {
  for (int32_t x = 0; x < resized; ++x) {
    int32_t total[kLanes];
    for (int i = 0; i < kLanes; ++i) total[i] = kWeightHalf;
    const uint8_t* from = in + int64_t{starts[x]} * kLanes;
    for (int32_t tap = 0; tap < taps; ++tap) {
      const int32_t weight = weights[int64_t{tap} * resized + x];
      for (int i = 0; i < kLanes; ++i) total[i] += weight * from[tap * kLanes + i];
    }
    for (int i = 0; i < kLanes; ++i) out[x * kLanes + i] = pixel_of(total[i]);
  }
}

// `taps` rows, `stride` apart, to one. weights[tap * step].
STREAMT1_CLONES void resize_columns(uint8_t* out, const uint8_t* in, const int32_t* weights,
                                    int64_t step, int32_t taps, int32_t width) {
  constexpr int kTile = 64;
  for (int32_t x = 0; x < width; x += kTile) {
    const int count = std::min(kTile, width - x);
    int32_t total[kTile];
    for (int i = 0; i < count; ++i) total[i] = kWeightHalf;
    for (int32_t tap = 0; tap < taps; ++tap) {
      const int32_t weight = weights[tap * step];
      const uint8_t* from = in + int64_t{tap} * width + x;
      for (int i = 0; i < count; ++i) total[i] += weight * from[i];
    }
    for (int i = 0; i < count; ++i) out[x + i] = pixel_of(total[i]);
  }
}

namespace {

// One colour of one frame, `kBand` output rows of it.
struct Task {
  int64_t frame;
  int colour;
  int32_t first, last;  // output rows
};

class Worker {
 public:
  explicit Worker(const PatchJob& job) : job_(job), size_(bytes_of(job.type)) {
    lines_.resize(int64_t{kLanes} * job.columns.size);
    turned_.resize(lines_.size());
    resized_.resize(int64_t{kLanes} * job.columns.resized);
    row_.resize(job.columns.resized);
    values_.resize(int64_t{4} * job.columns.resized);
  }

  void run(const Task& task) {
    const ResizeAxis& rows = job_.rows;
    const int32_t begin = rows.starts[task.first];
    const int32_t end = rows.starts[task.last - 1] + rows.taps;
    const int64_t width = job_.columns.resized;
    narrow_.resize((end - begin + kLanes) * width);
    for (int32_t y = begin; y < end; y += kLanes) narrow(task, y, end, (y - begin) * width);
    for (int32_t y = task.first; y < task.last; ++y) {
      resize_columns(row_.data(), narrow_.data() + (rows.starts[y] - begin) * width,
                     rows.weights + y, rows.resized, rows.taps, job_.columns.resized);
      normalise_line(values_.data(), job_.out_type, row_.data(), width, job_.scale[task.colour],
                     job_.shift[task.colour]);
      job_.out_type == Pixel::kFloat32 ? scatter<4>(task, y) : scatter<2>(task, y);
    }
  }

 private:
  // Input rows [y, y + kLanes) to the output's width, at `at` in narrow_. Rows from `end` on repeat
  // the last one.
  void narrow(const Task& task, int32_t y, int32_t end, int64_t at) {
    const int64_t size = job_.columns.size;
    const uint8_t* lines[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      const int64_t row = int64_t{task.colour} * job_.rows.size + std::min(y + i, end - 1);
      const auto* in = static_cast<const uint8_t*>(job_.frames) +
                       (task.frame * job_.frame_stride + row * size) * size_;
      uint8_t* line = lines_.data() + i * size;
      lines[i] = job_.type == Pixel::kUInt8 ? in : line;
      if (job_.type != Pixel::kUInt8) quantise_line(line, in, job_.type, size, job_.range);
    }
    turn(turned_.data(), lines, size);
    resize_rows(resized_.data(), turned_.data(), job_.columns.starts, job_.columns.weights,
                job_.columns.taps, job_.columns.resized);
    turn_back(narrow_.data() + at, resized_.data(), job_.columns.resized);
  }

  // Output row y, in values_ of kSize bytes each, to the patches it crosses.
  template <int kSize>
  void scatter(const Task& task, int32_t y) const {
    constexpr int kRun = kPatchSide * kSize;
    const int64_t group = job_.video ? task.frame / kPatchFrames : task.frame;
    const int slot = job_.video ? task.frame % kPatchFrames : 0;
    const bool alone = !job_.video || (slot == 0 && task.frame + 1 == job_.frame_count);
    auto* out = static_cast<uint8_t*>(job_.out);
    for (int64_t column = 0; column < job_.columns.resized / kPatchSide; ++column) {
      const int64_t patch = group * patches_of(job_) + place_of(job_, y / kPatchSide, column);
      const int64_t block = (patch * 3 + task.colour) * kPatchFrames + slot;
      uint8_t* to = out + (block * kPatchPixels + y % kPatchSide * kPatchSide) * kSize;
      std::memcpy(to, values_.data() + column * kRun, kRun);
      if (alone) std::memcpy(to + kPatchPixels * kSize, values_.data() + column * kRun, kRun);
    }
  }

  const PatchJob& job_;
  const int size_;
  std::vector<uint8_t> lines_, turned_, resized_, narrow_, row_, values_;
};

}  // namespace

void reward_patches(const PatchJob& job, int threads) {
  const int64_t bands = (job.rows.resized + kBand - 1) / kBand, tasks = job.frame_count * 3 * bands;
  const int64_t pixels = tasks * kBand * job.columns.resized;
  threads = static_cast<int>(std::clamp<int64_t>(pixels / kPixelsWorthAThread, 1, threads));
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    Worker worker(job);
#pragma omp for schedule(dynamic)
    for (int64_t i = 0; i < tasks; ++i) {
      const auto first = static_cast<int32_t>(i % bands * kBand);
      worker.run({i / bands / 3, static_cast<int>(i / bands % 3), first,
                  std::min(first + kBand, job.rows.resized)});
    }
  }
}

}  // namespace streamt1
