// What a kernel's source sees of the emulator; emulator.cc is behind it. Included in place of CUDA's own headers.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <tuple>
#include <utility>

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>

#include "cuda_launch.h"  // the product's own

#undef __global__
#undef __device__
#undef __host__
#undef __forceinline__
#undef __launch_bounds__
#undef __align__
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define INLINE __attribute__((always_inline)) inline

namespace emu {
struct Dim {
  unsigned x, y, z;
};
struct Where {  // of the running thread
  Dim thread, block, block_dim, grid_dim;
};
extern Where* here;
void launch(Dim grid, Dim block, int cluster, size_t dynamic_bytes, std::function<void()> body);
const char* failure();

char* dynamic_shared();
char* static_shared(int id, size_t bytes, size_t align);
uint32_t shared_address(const void* p);
void sync_cta();
unsigned rank();  // of the CTA in its cluster
void arrive_cluster();
void wait_cluster();
void sync_warp(unsigned mask);
void shuffle(void* value, size_t bytes, int lane);  // value becomes that of the lane
int lane();
unsigned vote(int predicate, unsigned mask);
void yield();

void copy_async(uint32_t to, const void* from, int bytes, int given);
void commit_copies();
void wait_copies(int pending);

void load_matrix(uint32_t* r, int count, bool transposed, uint32_t row);
uint32_t transpose_matrix(uint32_t a);
void multiply(float* d, const uint32_t* a, const uint32_t* b, const float* c, bool bf16);

void acquire_release(const void* p, bool acquire, bool release);
void fence();
void reads(const void* p, size_t bytes, size_t align);
void writes(const void* p, size_t bytes, size_t align);
char* shared_pointer(uint32_t address);
void copy_quietly(void* to, const void* from, size_t bytes);  // what is inlined here is watched, calls are not

template <class T>
INLINE T shuffled(T v, int from) {
  shuffle(&v, sizeof v, from);
  return v;
}
INLINE uint32_t reduced(uint32_t v, bool greatest) {  // of a warp
  for (int mask = 16; mask; mask /= 2) {
    uint32_t other = shuffled(v, lane() ^ mask);
    v = (other > v) == greatest ? other : v;
  }
  return v;
}
INLINE uint32_t summed(uint32_t v) {  // over a warp
  for (int mask = 16; mask; mask /= 2) v += shuffled(v, lane() ^ mask);
  return v;
}
template <class T, class F>
INLINE T atomic(T* p, F next, bool acquire = false, bool release = false) {
  yield();
  acquire_release(p, acquire, release);
  T old, now;
  copy_quietly(&old, p, sizeof old);
  now = next(old);
  copy_quietly(p, &now, sizeof now);
  yield();
  return old;
}
INLINE float bits_float(uint32_t u) {
  float f;
  memcpy(&f, &u, 4);
  return f;
}
INLINE uint32_t pack_bf16(float high, float low) {
  __nv_bfloat16 h[2] = {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
  uint32_t u;
  memcpy(&u, h, 4);
  return u;
}
INLINE uint32_t pack_f16(float high, float low) {
  __half h[2] = {__float2half_rn(low), __float2half_rn(high)};
  uint32_t u;
  memcpy(&u, h, 4);
  return u;
}
INLINE float half_float(uint32_t bits) {
  __half_raw raw;
  raw.x = (uint16_t)bits;
  return __half2float(__half(raw));
}
template <class F>
INLINE uint32_t each_f16(uint32_t a, uint32_t b, uint32_t c, F of) {  // both numbers of pairs, rounded once
  float high = of(half_float(a >> 16), half_float(b >> 16), half_float(c >> 16));
  return pack_f16(high, of(half_float(a), half_float(b), half_float(c)));
}
INLINE uint16_t from_e4m3(unsigned byte) {  // the bits of the f16 of that value
  int exponent = byte >> 3 & 15, fraction = byte & 7;
  float x = exponent ? ldexpf(8 + fraction, exponent - 10) : ldexpf(fraction, -9);
  __half h = __float2half_rn((byte & 127) == 127 ? NAN : byte & 128 ? -x : x);
  uint16_t bits;
  memcpy(&bits, &h, 2);
  return bits;
}
INLINE uint32_t permuted(uint32_t low, uint32_t high, uint32_t order) {
  uint64_t both = (uint64_t)high << 32 | low;
  uint32_t out = 0;
  for (int i = 0; i < 4; i++) out |= (uint32_t)(both >> (order >> 4 * i & 7) * 8 & 0xFF) << 8 * i;
  return out;
}
INLINE float exp2_flush(float x) {
  float y = exp2f(fabsf(x) < 0x1p-126f ? 0.0f : x);
  return y < 0x1p-126f ? 0.0f : y;
}
template <class T>
INLINE void load(T* to, const void* from, int count) {
  reads(from, sizeof(T) * count, sizeof(T) * count);
  copy_quietly(to, from, sizeof(T) * count);
}
template <class T>
INLINE void store(const void* to, const T* from, int count) {
  writes(to, sizeof(T) * count, sizeof(T) * count);
  copy_quietly((void*)to, from, sizeof(T) * count);
}
}  // namespace emu

// the part of the CUDA runtime that launchers call
inline cudaError_t emu_last_error() { return cudaSuccess; }
inline const char* emu_error_string(cudaError_t) { return emu::failure(); }
template <class K>
cudaError_t emu_set_attribute(K, int, int64_t bytes) {
  return bytes > 227 * 1024 ? cudaErrorInvalidValue : cudaSuccess;
}
template <class... P, class... A>
cudaError_t emu_launch_kernel(const cudaLaunchConfig_t* c, void (*kernel)(P...), A... a) {
  auto d = [](dim3 x) { return emu::Dim{x.x, x.y, x.z}; };
  int cluster = 1;
  for (unsigned i = 0; i < c->numAttrs; i++)
    if (c->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = c->attrs[i].val.clusterDim.x;
  emu::launch(d(c->gridDim), d(c->blockDim), cluster, c->dynamicSmemBytes, [=] { kernel(a...); });
  return emu::failure()[0] ? cudaErrorLaunchFailure : cudaSuccess;
}
#define cudaGetLastError emu_last_error
#define cudaGetErrorString emu_error_string
#define cudaFuncSetAttribute emu_set_attribute
#define cudaLaunchKernelEx emu_launch_kernel
#define threadIdx (emu::here->thread)
#define blockIdx (emu::here->block)
#define blockDim (emu::here->block_dim)
#define gridDim (emu::here->grid_dim)
#define __syncthreads emu::sync_cta
#define __threadfence emu::fence
INLINE void __syncwarp(unsigned mask = ~0u) { emu::sync_warp(mask); }
template <class T> INLINE T __shfl_sync(unsigned, T v, int l, int width = 32) {
  return emu::shuffled(v, (emu::lane() & ~(width - 1)) | (l & (width - 1)));
}
template <class T> INLINE T __shfl_xor_sync(unsigned, T v, int m, int = 32) { return emu::shuffled(v, emu::lane() ^ m); }
template <class T> INLINE T __shfl_down_sync(unsigned, T v, int d, int width = 32) {
  int l = emu::lane();
  return emu::shuffled(v, (l & (width - 1)) + d < width ? l + d : l);
}
template <class T> INLINE T __shfl_up_sync(unsigned, T v, int d, int width = 32) {
  int l = emu::lane();
  return emu::shuffled(v, (l & (width - 1)) >= d ? l - d : l);
}
INLINE unsigned __ballot_sync(unsigned mask, int p) { return emu::vote(p, mask); }
INLINE int __any_sync(unsigned mask, int p) { return emu::vote(p, mask) != 0; }
INLINE int __all_sync(unsigned mask, int p) { return emu::vote(p, mask) == mask; }
INLINE unsigned __activemask() { return ~0u; }
template <class T> INLINE T atomicAdd(T* p, T v) { return emu::atomic(p, [=](T o) { return (T)(o + v); }); }
template <class T> INLINE T atomicMax(T* p, T v) { return emu::atomic(p, [=](T o) { return o > v ? o : v; }); }
template <class T> INLINE T atomicMin(T* p, T v) { return emu::atomic(p, [=](T o) { return o < v ? o : v; }); }
template <class T> INLINE T atomicOr(T* p, T v) { return emu::atomic(p, [=](T o) { return (T)(o | v); }); }
template <class T> INLINE T atomicExch(T* p, T v) { return emu::atomic(p, [=](T) { return v; }); }
template <class T> INLINE T atomicCAS(T* p, T c, T v) { return emu::atomic(p, [=](T o) { return o == c ? v : o; }); }
INLINE unsigned __cvta_generic_to_shared(const void* p) { return emu::shared_address(p); }
INLINE int __popc(unsigned x) { return __builtin_popcount(x); }
INLINE int __clz(int x) { return x ? __builtin_clz(x) : 32; }
INLINE int __ffs(int x) { return __builtin_ffs(x); }
INLINE unsigned __float_as_uint(float f) { unsigned u; memcpy(&u, &f, 4); return u; }
INLINE int __float_as_int(float f) { int u; memcpy(&u, &f, 4); return u; }
INLINE float __uint_as_float(unsigned u) { return emu::bits_float(u); }
INLINE float __int_as_float(int u) { return emu::bits_float((unsigned)u); }
template <class T> INLINE T __ldg(const T* p) { T v; emu::load(&v, p, 1); return v; }
INLINE int max(int a, int b) { return a > b ? a : b; }
INLINE int min(int a, int b) { return a < b ? a : b; }
INLINE unsigned max(unsigned a, unsigned b) { return a > b ? a : b; }
INLINE unsigned min(unsigned a, unsigned b) { return a < b ? a : b; }
INLINE int64_t max(int64_t a, int64_t b) { return a > b ? a : b; }
INLINE int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }
INLINE float max(float a, float b) { return fmaxf(a, b); }
INLINE float min(float a, float b) { return fminf(a, b); }
using nv_bfloat16 = __nv_bfloat16;
typedef unsigned int uint;
typedef unsigned short ushort;
typedef unsigned char uchar;

