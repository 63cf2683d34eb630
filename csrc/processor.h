#pragma once

// Which instructions a hot loop may use. There is a version of each such loop for every processor and, where the
// compiler can, one for those with AVX2, and perhaps one for those with AVX-512. All give the same bits.

#if defined(__GNUC__) && defined(__x86_64__)
#define AFD_HAS_AVX2 1
#define AFD_TARGET_AVX2 __attribute__((target("avx2")))
#define AFD_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")))
#endif

#define AFD_ALWAYS_INLINE inline __attribute__((always_inline))

namespace afd {

// kFastest is the best that the processor at hand offers; the others are for tests.
enum class Instructions { kFastest, kAvx2, kPortable };

inline bool use_avx2(Instructions instructions) {
#ifdef AFD_HAS_AVX2
  return instructions != Instructions::kPortable && __builtin_cpu_supports("avx2");
#else
  (void)instructions;
  return false;
#endif
}

inline bool use_avx512(Instructions instructions) {
#ifdef AFD_HAS_AVX2
  return instructions == Instructions::kFastest && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
#else
  (void)instructions;
  return false;
#endif
}

}  // namespace afd
