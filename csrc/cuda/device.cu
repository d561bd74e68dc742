#include "cuda/device.h"

#include <cuda_runtime_api.h>

namespace radconv::cuda {

DeviceInfo device_info() noexcept {
  DeviceInfo info{0, 0, 0};
  if (cudaRuntimeGetVersion(&info.runtime_version) != cudaSuccess) info.runtime_version = 0;
  if (cudaDriverGetVersion(&info.driver_version) != cudaSuccess) info.driver_version = 0;
  if (cudaGetDeviceCount(&info.device_count) != cudaSuccess) info.device_count = 0;
  // A failed query leaves its error behind; the next launch's check would report it as its own.
  (void)cudaGetLastError();
  return info;
}

}  // namespace radconv::cuda
