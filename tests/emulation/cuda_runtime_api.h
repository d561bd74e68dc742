// Stand-in for the header of the same name: as much of the runtime's host interface as csrc/cuda calls. One device, an
// A100 by its figures, on which every kernel has ended when its launch returns.

#pragma once

#include <cstddef>

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInvalidDeviceFunction = 98,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorLaunchOutOfResources = 701,
  cudaErrorNotSupported = 801,
  cudaErrorUnknown = 999,
};

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};

using cudaStream_t = struct CUstream_st*;

namespace radconv::emulation {

constexpr int kMaxShared = 163 * 1024;  // bytes of dynamic shared memory that a prepared kernel may have

struct HostState {
  cudaError_t last_error = cudaSuccess;
  int device = 0;
};

inline HostState& host_state() {
  static thread_local HostState state;
  return state;
}

}  // namespace radconv::emulation

inline const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return "no error";
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInvalidConfiguration:
      return "invalid configuration argument";
    case cudaErrorInvalidDeviceFunction:
      return "invalid device function";
    case cudaErrorNoDevice:
      return "no CUDA-capable device is detected";
    case cudaErrorInvalidDevice:
      return "invalid device ordinal";
    case cudaErrorLaunchOutOfResources:
      return "too many resources requested for launch";
    case cudaErrorNotSupported:
      return "operation not supported";
    default:
      return "unknown error";
  }
}

inline cudaError_t cudaGetLastError() {
  const cudaError_t error = radconv::emulation::host_state().last_error;
  radconv::emulation::host_state().last_error = cudaSuccess;
  return error;
}

inline cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

inline cudaError_t cudaDriverGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}

inline cudaError_t cudaGetDeviceCount(int* count) {
  *count = 1;
  return cudaSuccess;
}

inline cudaError_t cudaGetDevice(int* device) {
  *device = radconv::emulation::host_state().device;
  return cudaSuccess;
}

inline cudaError_t cudaSetDevice(int device) {
  radconv::emulation::host_state().device = device;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /* device */) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 108;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      return cudaSuccess;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = radconv::emulation::kMaxShared;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}
