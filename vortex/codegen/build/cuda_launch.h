// What TVM's launchers need of tvm/ffi/function.h and device_guard.h, which alone take seconds to compile.
#pragma once
#include <cuda_runtime.h>
#include <tvm/ffi/c_api.h>
#include <tvm/ffi/extra/c_env_api.h>

#include <exception>

#define TVM_FFI_SAFE_CALL_BEGIN() \
  try {                           \
  (void)0
#define TVM_FFI_SAFE_CALL_END()                                    \
  return 0;                                                        \
  }                                                                \
  catch (const std::exception& error) {                            \
    TVMFFIErrorSetRaisedFromCStr("InternalError", error.what());   \
    return -1;                                                     \
  }                                                                \
  return -1

namespace tvm::ffi {
// The device of the arguments for the length of a call; costs one query where it is current already.
class CUDADeviceGuard {
 public:
  explicit CUDADeviceGuard(int device) : device_(device) {
    cudaGetDevice(&before_);
    if (device_ != before_) cudaSetDevice(device_);
  }
  ~CUDADeviceGuard() {
    if (device_ != before_) cudaSetDevice(before_);
  }

 private:
  int device_, before_ = 0;
};
}  // namespace tvm::ffi
