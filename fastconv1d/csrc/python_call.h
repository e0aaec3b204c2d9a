// `fastconv1d::convolution` as a function of Python that reads its arguments by itself: by way of torch.ops that
// takes longer than a small layer. It answers NotImplemented where an argument is not what layers have, and leaves
// the rest to torch.ops. Where Python's headers are missing there is no such function.
#pragma once
#if __has_include(<Python.h>)
#include <Python.h>  // before all others, as it asks

#include <ATen/PythonTorchFunctionTLS.h>
#include <torch/csrc/Exceptions.h>
#include <torch/csrc/autograd/python_variable.h>

#include "recorded.h"

namespace {

// An int, or a tuple of one.
inline bool read_size(PyObject* value, int64_t* size) {
  if (PyTuple_CheckExact(value) && PyTuple_GET_SIZE(value) == 1) value = PyTuple_GET_ITEM(value, 0);
  if (!PyLong_CheckExact(value)) return false;
  int overflow = 0;
  *size = PyLong_AsLongLongAndOverflow(value, &overflow);
  return overflow == 0;
}

// (input, weight, bias, stride, padding, dilation, transposed, output_padding, groups, algorithm), the input with
// a batch.
inline PyObject* python_convolution(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
  HANDLE_TH_ERRORS
  if (count != 10) Py_RETURN_NOTIMPLEMENTED;
  const bool with_bias = arguments[2] != Py_None;
  int64_t stride, padding, dilation, output_padding, groups;
  Py_ssize_t length = 0;
  const char* algorithm = nullptr;
  const bool plain = THPVariable_CheckExact(arguments[0]) && THPVariable_CheckExact(arguments[1]) &&
                     (!with_bias || THPVariable_CheckExact(arguments[2])) &&
                     read_size(arguments[3], &stride) && read_size(arguments[4], &padding) &&
                     read_size(arguments[5], &dilation) && PyBool_Check(arguments[6]) &&
                     read_size(arguments[7], &output_padding) && PyLong_CheckExact(arguments[8]) &&
                     read_size(arguments[8], &groups) && PyUnicode_CheckExact(arguments[9]) &&
                     !at::impl::torch_function_mode_enabled();
  if (plain) algorithm = PyUnicode_AsUTF8AndSize(arguments[9], &length);
  if (algorithm == nullptr) {
    PyErr_Clear();
    Py_RETURN_NOTIMPLEMENTED;
  }
  // Copies, which nobody can swap for others while Python goes on.
  const at::Tensor input = THPVariable_Unpack(arguments[0]),
                   weight = THPVariable_Unpack(arguments[1]);
  if (input.dim() != 3 || weight.dim() != 3 || input.is_complex()) Py_RETURN_NOTIMPLEMENTED;
  std::optional<at::Tensor> bias;
  if (with_bias) bias = THPVariable_Unpack(arguments[2]);
  at::Tensor output;
  {
    pybind11::gil_scoped_release no_gil;
    const c10::SymInt sizes[] = {stride, padding, dilation, output_padding};
    output = convolution_operator().call(input, weight, bias, c10::SymIntArrayRef(sizes, 1),
                                         c10::SymIntArrayRef(sizes + 1, 1),
                                         c10::SymIntArrayRef(sizes + 2, 1), arguments[6] == Py_True,
                                         c10::SymIntArrayRef(sizes + 3, 1), groups,
                                         c10::string_view(algorithm, static_cast<size_t>(length)));
  }
  return THPVariable_Wrap(std::move(output));
  END_HANDLE_TH_ERRORS
}

}  // namespace

// A new reference to it.
extern "C" PyObject* fastconv1d_python_convolution() {
  static PyMethodDef method{
      "convolution",
      reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(python_convolution)),
      METH_FASTCALL, nullptr};
  return PyCFunction_New(&method, nullptr);
}
#endif
