// The C interface between the torch binding and every kernel library.
#pragma once
#include <cstdint>

namespace fastconv1d {

enum Mode : int64_t { kTf32 = 0, kIeee = 1, kBf16 = 2, kFp16 = 3, kFp64 = 4 };

// One convolution. Channel counts are totals over the groups; strides are in elements, and
// positions of the input are contiguous. The output is a contiguous (batch, channels_out,
// length_out) tensor and the weight a contiguous (channels_out, channels_in/groups, kernel_size)
// one, or (channels_in, channels_out/groups, kernel_size) when `transposed`. The output and the
// workspace begin at a multiple of 32 bytes.
//
// A library of gradients takes an ordinary convolution, its input and `grad_output`, which has the shape
// of an output and is contiguous. It writes the gradient of the weight to `output`, in the weight's
// shape, and that of the bias, (channels_out,), to `grad_bias` unless that is null:
//
//   output[o, c, k] = sum over n, q of grad_output[n, o, q] * input[n, c, q * stride + k * dilation - padding]
//   grad_bias[o]    = sum over n, q of grad_output[n, o, q]
//
// Where `fastconv1d::_select` says that the library can, it may be given the weight too, and then writes the
// gradient of the input, a contiguous (batch, channels_in, length) tensor, to `grad_input`.
struct ConvArgs {
  const void* input;
  const void* weight;
  const void* bias;  // null: none
  void* output;
  void* workspace;
  const void* grad_output;
  void* grad_bias;
  void* grad_input;  // null: not wanted
  int64_t batch, channels_in, channels_out, length, length_out;
  int64_t kernel_size, stride, padding, dilation, groups, transposed;
  int64_t input_batch_stride, input_channel_stride;
  int64_t mode;
  int64_t multiprocessors;
};

}  // namespace fastconv1d

extern "C" {
// Enqueues the convolution on `stream` (a cudaStream_t); returns a cudaError_t.
int fastconv1d_launch(int64_t variant, const fastconv1d::ConvArgs* args, void* stream);
// Bytes of `workspace` that this convolution needs.
int64_t fastconv1d_workspace(int64_t variant, const fastconv1d::ConvArgs* args);
}
