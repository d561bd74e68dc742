// What the CUDA runtime says about this machine. Plain C++: includable without CUDA's headers.
#pragma once

namespace radconv::cuda {

struct DeviceInfo {
  int runtime_version;  // of the runtime linked into this library: 1000 * major + 10 * minor, 13000 for 13.0
  int driver_version;   // newest runtime that the installed driver serves, same form; 0 without a driver
  int device_count;     // visible devices; 0 without a driver, and with a driver older than the runtime
};

// Never fails: whatever can't be found out is 0. Initialises the CUDA driver in this process, so a child that is forked
// afterwards can't use CUDA: call it on request only, never at import.
DeviceInfo device_info() noexcept;

}  // namespace radconv::cuda
