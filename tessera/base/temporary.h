#pragma once

// How files and folders are written beside their places; not for other rooms.

#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace tessera {

/// What the name of a temporary says: ".<name>.<host>.<boot>.<pid>.<random>.tmp". `boot` is empty
/// in the names of versions that wrote ".<name>.<pid>.tmp".
struct TemporaryName {
  std::string name, host, boot, pid;
};
std::optional<TemporaryName> parse_temporary(std::string_view file);

/// A new file or folder beside `place`, under a name that no other thread, process, container or
/// host takes. It is locked while it lives, so that others can tell; the end of the scope removes
/// it unless it was released. Throws std::system_error.
class Temporary {
 public:
  enum class Kind { file, folder };
  Temporary(const std::filesystem::path& place, Kind kind);
  ~Temporary();
  Temporary(const Temporary&) = delete;
  Temporary& operator=(const Temporary&) = delete;

  const std::filesystem::path& path() const { return path_; }
  int fd() const { return fd_; }  ///< of a file open for writing; of a folder for syncing
  void release() { released_ = true; }

 private:
  std::filesystem::path path_;
  int fd_ = -1;
  bool released_ = false;
};

/// Temporaries of `place` that lie beside it: removed where their writer is known to be dead (begun
/// under this kernel, and no longer locked); those of which nobody here can know are returned.
std::vector<std::filesystem::path> remove_leftovers(const std::filesystem::path& place);

/// Whether `path` lies in a folder that is being written.
bool is_within_temporary(const std::filesystem::path& path);

/// `path` with the names that temporaries stand for.
std::filesystem::path without_temporary(const std::filesystem::path& path);

/// Whether `path` still names what `fd` is.
bool is_still(const std::filesystem::path& path, int fd);

/// A folder without a trailing slash, "." for none before it.
std::filesystem::path without_slash(const std::filesystem::path& path);
std::filesystem::path parent_of(const std::filesystem::path& path);

}  // namespace tessera
