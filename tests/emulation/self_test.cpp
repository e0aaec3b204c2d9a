// Tests the emulator itself: `self_test CASE` exits with 0 where the case's results are right.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "device.cuh"

namespace {

using namespace fastconv1d;

// out = a·b for 16×K and K×8 operands in row-major memory, one warp, laid out as the PTX ISA's
// figures for m16n8k8 (.tf32) and m16n8k16 (.bf16, .f16) say.
__global__ void matmul_tf32(const float* a, const float* b, float* out) {
  const int group = threadIdx.x >> 2, in_group = threadIdx.x & 3;
  uint32_t fragment[4];
  for (int i = 0; i < 4; ++i) {
    const int row = i == 0 || i == 2 ? group : group + 8;
    const int column = i == 0 || i == 1 ? in_group : in_group + 4;
    fragment[i] = round_tf32(a[row * 8 + column]);
  }
  const uint32_t b0 = round_tf32(b[in_group * 8 + group]);
  const uint32_t b1 = round_tf32(b[(in_group + 4) * 8 + group]);
  float c[4] = {0, 0, 0, 0};
  mma_tf32(c, fragment, b0, b1);
  for (int i = 0; i < 4; ++i) out[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = c[i];
}

template <bool kBf16>
__global__ void matmul_16bit(const float* a, const float* b, float* out) {
  const auto bits = [](float x) { return kBf16 ? float_to_bf16(x) : float_to_fp16(x); };
  const int group = threadIdx.x >> 2, in_group = threadIdx.x & 3;
  uint32_t fragment[4] = {0, 0, 0, 0}, b_fragment[2] = {0, 0};
  for (int i = 0; i < 8; ++i) {
    const int row = (i >= 0 && i < 2) || (i >= 4 && i < 6) ? group : group + 8;
    const int column = in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0);
    fragment[i / 2] |= uint32_t(bits(a[row * 16 + column])) << 16 * (i & 1);
  }
  for (int i = 0; i < 4; ++i) {
    const int row = in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0);
    b_fragment[i / 2] |= uint32_t(bits(b[row * 8 + group])) << 16 * (i & 1);
  }
  float c[4] = {0, 0, 0, 0};
  if (kBf16)
    mma_bf16(c, fragment, b_fragment[0], b_fragment[1]);
  else
    mma_fp16(c, fragment, b_fragment[0], b_fragment[1]);
  for (int i = 0; i < 4; ++i) out[(i < 2 ? group : group + 8) * 8 + in_group * 2 + (i & 1)] = c[i];
}

// The small integers 0..6 are exact in every type, so the product must be exact as well.
bool matmul(int depth, void (*kernel)(const float*, const float*, float*)) {
  std::mt19937 random(1);
  std::vector<float> a(16 * depth), b(depth * 8), out(16 * 8, NAN);
  for (auto& x : a) x = float(random() % 7);
  for (auto& x : b) x = float(random() % 7);
  if (launch(kernel, dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), out.data())) return false;
  for (int row = 0; row < 16; ++row)
    for (int column = 0; column < 8; ++column) {
      float expected = 0;
      for (int k = 0; k < depth; ++k) expected += a[row * depth + k] * b[k * 8 + column];
      if (out[row * 8 + column] != expected) return false;
    }
  return true;
}

// The sum of each block's values, by a tree in shared memory.
template <bool kBarrier>
__global__ void reduce(const float* in, float* out) {
  FASTCONV1D_SHARED(words);
  auto* sums = reinterpret_cast<float*>(words);
  const unsigned t = threadIdx.x;
  sums[t] = in[blockIdx.x * blockDim.x + t];
  __syncthreads();
  for (unsigned half = blockDim.x / 2; half > 0; half /= 2) {
    if (t < half) sums[t] += sums[t + half];
    if (kBarrier) __syncthreads();
  }
  if (t == 0) out[blockIdx.x] = sums[0];
}

bool reduction(void (*kernel)(const float*, float*)) {
  std::vector<float> in(3 * 128), out(3, NAN);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
  if (launch(kernel, dim3(3), dim3(128), 128 * 4, nullptr, in.data(), out.data())) return false;
  for (int block = 0; block < 3; ++block)
    if (out[block] != float(128 * 128 * block + 127 * 64)) return false;
  return true;
}

// Transposes a 32×32 tile through shuffles alone: in round r, lane l holds column l ^ r.
__global__ void transpose(const int* in, int* out) {
  const int lane = threadIdx.x;
  for (int round = 0; round < 32; ++round) {
    const int mine = in[(lane ^ round) * 32 + lane];
    out[lane * 32 + (lane ^ round)] = __shfl_xor_sync(0xffffffffu, mine, round);
  }
  // The other two shuffles, in halves of the warp.
  out[1024 + lane] = __shfl_sync(0xffffffffu, lane, 3, 16);
  out[1056 + lane] = __shfl_down_sync(0xffffffffu, lane, 5u, 16);
}

bool shuffles() {
  std::vector<int> in(1024), out(1024 + 64, -1);
  for (int i = 0; i < 1024; ++i) in[i] = i;
  if (launch(transpose, dim3(1), dim3(32), 0, nullptr, in.data(), out.data())) return false;
  for (int i = 0; i < 1024; ++i)
    if (out[i] != in[i]) return false;  // lane l, round r: value [l][l ^ r] of the lane l ^ r
  for (int lane = 0; lane < 32; ++lane) {
    if (out[1024 + lane] != lane / 16 * 16 + 3) return false;
    if (out[1056 + lane] != (lane % 16 + 5 < 16 ? lane + 5 : lane)) return false;
  }
  return true;
}

// Copies three groups of 16 bytes a thread through shared memory, two groups in flight; each warp
// reads what its neighbouring lane brought.
template <bool kWait, bool kBarrier>
__global__ void pipeline(const float* in, float* out) {
  FASTCONV1D_SHARED(words);
  const int lane = threadIdx.x;
  for (int group = 0; group < 3; ++group) {
    copy_async_16(words + (group * 32 + lane) * 4, in + (group * 32 + lane) * 4);
    copy_async_commit();
  }
  for (int group = 0; group < 3; ++group) {
    if (group == 0) copy_async_wait<kWait ? 2 : 3>();
    if (group == 1) copy_async_wait<1>();
    if (group == 2) copy_async_wait<0>();
    if (kBarrier) __syncwarp();
    const int from = group * 32 + (lane + 1) % 32;
    const auto value = reinterpret_cast<const float4*>(words)[from];
    reinterpret_cast<float4*>(out)[from] = value;
  }
}

bool copies(void (*kernel)(const float*, float*)) {
  std::vector<float4> in(3 * 32), out(3 * 32, float4{NAN, NAN, NAN, NAN});
  for (int i = 0; i < 3 * 32; ++i)
    in[i] = {float(4 * i), float(4 * i + 1), float(4 * i + 2), float(4 * i + 3)};
  if (launch(kernel, dim3(1), dim3(32), 3 * 32 * 16, nullptr,
             reinterpret_cast<const float*>(in.data()), reinterpret_cast<float*>(out.data())))
    return false;
  return std::memcmp(in.data(), out.data(), sizeof(float4) * in.size()) == 0;
}

// Two warps pass tiles of 32 values on: one writes, at most two tiles ahead, and the other sums up.
template <bool kWait>
__global__ void pass_on(const float* in, float* out) {
  FASTCONV1D_SHARED(words);
  auto* full = reinterpret_cast<uint64_t*>(words);  // of either half
  auto* read = full + 2;
  auto* halves = reinterpret_cast<float*>(words + 8);
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 4) barrier_init(full + threadIdx.x, 32);
  __syncthreads();
  float sum = 0;
  for (int tile = 0; tile < 8; ++tile) {
    const int half = tile % 2;
    const uint32_t parity = tile / 2 % 2;
    if (threadIdx.x < 32) {
      if (tile >= 2) barrier_wait(read + half, parity ^ 1);
      halves[half * 32 + lane] = in[tile * 32 + lane];
      barrier_arrive(full + half);
    } else {
      if (kWait) barrier_wait(full + half, parity);
      for (int i = 0; i < 32; ++i) sum += halves[half * 32 + i];
      barrier_arrive(read + half);
    }
  }
  if (threadIdx.x == 32) out[0] = sum;
}

bool barriers(void (*kernel)(const float*, float*)) {
  std::vector<float> in(8 * 32), out(1, NAN);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float(i);
  if (launch(kernel, dim3(1), dim3(64), 32 + 64 * 4, nullptr, in.data(), out.data())) return false;
  return out[0] == 128 * 255;
}

__global__ void write_past_the_end(uint32_t* out) {
  FASTCONV1D_SHARED(words);
  words[threadIdx.x + 1] = threadIdx.x;
  out[threadIdx.x] = words[threadIdx.x];
}

bool shared_overrun() {
  std::vector<uint32_t> out(32);
  return launch(write_past_the_end, dim3(1), dim3(32), 32 * 4, nullptr, out.data()) == 0;
}

__global__ void part_of_a_warp_waits() {
  if (threadIdx.x < 16) __syncwarp();
  __syncthreads();
}

bool divergence() { return launch(part_of_a_warp_waits, dim3(1), dim3(64), 0, nullptr) == 0; }

// What a launch refuses, as the hardware does.
bool limits() {
  emulation::shared_limits.clear();
  std::vector<float> in(128, 1.0f), out(1);
  const auto error = [&](dim3 grid, unsigned threads, int64_t bytes) {
    return launch(reduce<true>, grid, dim3(threads), bytes, nullptr, in.data(), out.data());
  };
  if (!error(dim3(1), 2048, 8192) || !error(dim3(1, 70000), 128, 512)) return false;
  if (!error(dim3(0), 128, 512) || !error(dim3(1), 128, 64 << 10)) return false;
  if (!set_shared_limit(reduce<true>, 228 << 10)) return false;
  if (set_shared_limit(reduce<true>, 64 << 10)) return false;
  return error(dim3(1), 128, 64 << 10) == 0 && out[0] == 128;
}

bool conversions() {
  // Ties go away from zero for TF32 and to even for the 16-bit types.
  if (round_tf32(word_as_float(0x3f801000)) != 0x3f802000) return false;
  if (round_tf32(word_as_float(0x3f800fff)) != 0x3f800000) return false;
  // Infinities stay, and so does the NaN that half a unit would turn into a zero.
  if (round_tf32(word_as_float(0x7f800000)) != 0x7f800000) return false;
  if (round_tf32(word_as_float(0xff800000)) != 0xff800000) return false;
  if (!std::isnan(word_as_float(round_tf32(word_as_float(0x7fffffff))))) return false;
  if (float_to_bf16(word_as_float(0x3f808000)) != 0x3f80) return false;
  if (float_to_bf16(word_as_float(0x3f818000)) != 0x3f82) return false;
  if (float_to_bf16(word_as_float(0x7f7fffff)) != 0x7f80) return false;
  if (float_to_fp16(1 + 0x1p-11f) != 0x3c00 || float_to_fp16(1 + 0x3p-11f) != 0x3c02) return false;
  if (float_to_fp16(65519.0f) != 0x7bff || float_to_fp16(65520.0f) != 0x7c00) return false;
  if (float_to_fp16(0x1p-25f) != 0 || float_to_fp16(-0x3p-26f) != 0x8001) return false;
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const bool nan = (bits & 0x7c00) == 0x7c00 && bits & 0x3ff;
    if (!nan && float_to_fp16(fp16_to_float(uint16_t(bits))) != bits) return false;
  }
  return true;
}

__global__ void copy_constant(const int* from, int* to) { *to = __ldg(from); }

// A kernel reads what another wrote by way of the constant cache.
bool constant_workspace() {
  int values[2] = {1, 0};
  emulation::written = reinterpret_cast<const char*>(values);
  emulation::written_end = emulation::written + sizeof values;
  return launch(copy_constant, dim3(1), dim3(1), 0, nullptr, values, values + 1) == 0;
}

}  // namespace

int main(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "";
  bool right = true;
  for (const bool reverse : {false, true}) {
    emulation::reverse = reverse;
    if (name == "tf32")
      right &= matmul(8, matmul_tf32);
    else if (name == "bf16")
      right &= matmul(16, matmul_16bit<true>);
    else if (name == "fp16")
      right &= matmul(16, matmul_16bit<false>);
    else if (name == "reduction")
      right &= reduction(reduce<true>);
    else if (name == "shuffles")
      right &= shuffles();
    else if (name == "copies")
      right &= copies(pipeline<true, true>);
    else if (name == "barriers")
      right &= barriers(pass_on<true>);
    else if (name == "limits")
      right &= limits();
    else if (name == "conversions")
      right &= conversions();
    else if (name == "missing_barrier")
      right &= reduction(reduce<false>);
    else if (name == "missing_warp_barrier")
      right &= copies(pipeline<true, false>);
    else if (name == "missing_barrier_wait")
      right &= barriers(pass_on<false>);
    else if (name == "missing_wait")
      right &= copies(pipeline<false, true>);
    else if (name == "shared_overrun")
      right &= shared_overrun();
    else if (name == "divergence")
      right &= divergence();
    else if (name == "constant_workspace")
      right &= constant_workspace();
    else
      return std::fprintf(stderr, "no case '%s'\n", name.c_str()), 2;
  }
  return right ? 0 : 1;
}
