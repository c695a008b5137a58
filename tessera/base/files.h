#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "tessera/base/json.h"

namespace tessera {

namespace fs = std::filesystem;

/// The whole file as bytes; exit 3 when it is missing, a folder or unreadable.
std::string read_file(const fs::path& path);

/// The file as JSON; exit 3 with path and place when it does not parse.
Json read_json(const fs::path& path);

/// `text` as JSON; exit 3 naming `what` and the place when it does not parse.
Json parse_json(std::string_view text, const std::string& what);

/// Exit 2 where nothing can be written at `path`: asked before work whose result goes there.
/// Parents that are missing count as makeable.
void check_writable(const fs::path& path);

/// Writes beside the place, syncs and renames; a failure (full disk, no permission) leaves the old
/// file and throws RunError.
void write_file(const fs::path& path, std::string_view bytes);
void write_json(const fs::path& path, const Json& value);

/// As write_file, for output too large for one string: `write` fills the stream.
void write_file_with(const fs::path& path, const std::function<void(std::ostream&)>& write);

/// Writes a folder beside its place (`write` gets the temporary path) and exchanges the two
/// atomically; the old folder is removed afterwards, a killed call leaves the old folder or none.
void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& write);

/// SHA-256 in lower-case hex, incremental.
class Sha256 {
 public:
  Sha256();
  ~Sha256();
  Sha256(const Sha256&) = delete;
  Sha256& operator=(const Sha256&) = delete;
  void add(std::string_view bytes);
  std::string hex();  ///< ends the hash

 private:
  void* context_;
};
std::string sha256(std::string_view bytes);
std::string sha256_of_file(const fs::path& path);

/// Now, RFC 3339 in UTC with seconds.
std::string now_rfc3339();

}  // namespace tessera
