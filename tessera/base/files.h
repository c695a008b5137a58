#pragma once

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <string_view>

#include "tessera/base/json.h"
#include "tessera/base/log.h"

namespace tessera {

namespace fs = std::filesystem;

/// The whole file as bytes; exit 3 when it is missing, a folder or unreadable.
std::string read_file(const fs::path& path);

/// The file as JSON; exit 3 with path and place when it does not parse.
Json read_json(const fs::path& path);

/// `text` as JSON; exit 3 naming `what` and the place when it does not parse.
Json parse_json(std::string_view text, const std::string& what);

// All outputs obey one rule (docs/decisions/0008-durability.md). A regular file or a folder is
// replaced whole, once it is on the disk; what a symbolic link names is replaced and the link
// stays; a device or a pipe is written to. A failure (full disk, no permission) leaves the old file
// or folder and throws RunError.

/// Exit 2 where nothing can be written at `path`: asked before work whose result goes there.
/// Parents that are missing count as makeable.
void check_writable(const fs::path& path);

void write_file(const fs::path& path, std::string_view bytes);
void write_json(const fs::path& path, const Json& value);

/// As write_file, for output too large for one string: `write` fills the stream, which throws where
/// it cannot be written. Ends as interrupted, with nothing written, once `stop_requested` says so.
void write_file_with(const fs::path& path, const std::function<void(std::ostream&)>& write,
                     const std::function<bool()>& stop_requested = {});

/// Writes a folder beside its place (`write` gets the temporary path; files written there by the
/// functions above are synced with the whole) and exchanges the two; the old folder is removed
/// afterwards, a killed call leaves the old folder or none. On a file system that cannot exchange,
/// a call killed between two renames leaves the old one aside: ask folder_exists before reading.
void write_folder(const fs::path& path, const std::function<void(const fs::path&)>& write);

/// Whether a folder lies at `path`; one that write_folder left aside is put back first.
bool folder_exists(const fs::path& path);

/// Warns of what was begun beside `path` by a writer that may still live elsewhere: nothing removes
/// that. Leftovers of writers that are known to be dead go whenever their place is written.
void warn_of_leftovers(const fs::path& path, const Log& log);

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
/// Exit 3 as read_file; ends as interrupted once `stop_requested` says so.
std::string sha256_of_file(const fs::path& path, const std::function<bool()>& stop_requested = {});

/// Now, RFC 3339 in UTC with seconds.
std::string now_rfc3339();

}  // namespace tessera
