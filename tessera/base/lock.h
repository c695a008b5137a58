#pragma once

#include <filesystem>

#include "tessera/base/log.h"

namespace tessera {

/// Keeps a second writer out of a folder for as long as it lives. The kernel lets go of the lock
/// when the process ends, however it ends; children that this process starts do not keep it.
class FolderLock {
 public:
  /// Takes the lock, a file `.lock` in the folder, which is made where it is missing. Exit 2 naming
  /// the holder where somebody else writes there, this process included; RunError where nothing can
  /// be written. On a file system without locks a warning says so and the caller goes on alone.
  explicit FolderLock(const std::filesystem::path& folder, const Log& log = {});
  ~FolderLock();
  FolderLock(FolderLock&& other) noexcept;
  FolderLock& operator=(FolderLock&&) = delete;

  /// The name of the file, for whoever lists or empties a locked folder.
  static constexpr const char* kFile = ".lock";

 private:
  std::filesystem::path file_;
  int fd_ = -1;
};

}  // namespace tessera
