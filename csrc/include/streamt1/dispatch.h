// One function, several instruction sets: the loader picks the best one the processor has.
#pragma once

#if !defined(STREAMT1_NO_CLONES) && defined(__x86_64__) && defined(__gnu_linux__) && \
    defined(__GNUC__) && !defined(__clang__)
#define STREAMT1_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define STREAMT1_CLONES
#endif

// Helpers must be inlined into each clone, or they would keep the default instruction set.
#if defined(__GNUC__)
#define STREAMT1_INLINE inline __attribute__((always_inline))
#else
#define STREAMT1_INLINE inline
#endif
