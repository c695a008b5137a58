#pragma once

// What a kernel is compiled for. TESSERA_CLONES makes AVX-512, AVX2 and plain forms of a function,
// of which the processor's best is taken at run time; a function under TESSERA_AVX512 or
// TESSERA_AVX2 is called where has_avx512() or has_avx2(). With TESSERA_AT_MOST_AVX2 or
// TESSERA_PLAIN defined (tests/CMakeLists.txt) the better forms are left out.

#if !defined(__x86_64__) || defined(TESSERA_PLAIN)
#define TESSERA_CLONES
#elif defined(TESSERA_AT_MOST_AVX2)
#define TESSERA_CLONES [[gnu::target_clones("avx2", "default")]]
#define TESSERA_AVX2 [[gnu::target("avx2,fma")]]
#else
#define TESSERA_CLONES [[gnu::target_clones("avx512f", "avx2", "default")]]
#define TESSERA_AVX2 [[gnu::target("avx2,fma")]]
#define TESSERA_AVX512 [[gnu::target("avx512f")]]
#endif

namespace tessera::kernels {

#ifdef TESSERA_AVX2
inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }
#endif
#ifdef TESSERA_AVX512
inline bool has_avx512() { return __builtin_cpu_supports("avx512f"); }
#endif

}  // namespace tessera::kernels
