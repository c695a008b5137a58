#pragma once

#include <cstdint>

namespace tessera {

/// What belongs to the whole process and not to a run: the threads that torch computes with, the
/// habits of the allocator, the largest resident size so far (docs/decisions/0010). A library
/// changes none of it: the functions below that would are silent until the program that owns the
/// process has said so.

/// The program says, once at its start, that the process is its own.
void own_process();

/// Sets the number of threads, 0: all cores. Nothing in a process that is not owned.
void use_threads(int64_t n);
int64_t n_threads();  ///< that torch computes with

/// Before training: arrays that are freed stay with the process. Faster steps, a few MB more.
/// Nothing in a process that is not owned.
void keep_freed_memory();

/// Gives unused memory back and asks the kernel to forget the largest resident size so far, so that
/// each of several runs in one process reports its own. Where the kernel refuses, a later run
/// reports at least what an earlier one used. Nothing in a process that is not owned.
void reset_peak_memory();

/// The largest resident size of this process so far, MiB.
int64_t peak_rss_mb();
/// Its resident size now, MiB; 0 where the system does not tell.
int64_t resident_mb();

}  // namespace tessera
