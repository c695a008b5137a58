#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>
#include <string_view>

#include "tessera/base/error.h"
#include "tessera/base/files.h"

namespace tessera {

/// A folder of its own for one test, removed at the end.
class TempFolder {
 public:
  TempFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "tessera-test-XXXXXX").string();
    path_ = mkdtemp(name.data());
  }
  ~TempFolder() { std::filesystem::remove_all(path_); }
  TempFolder(const TempFolder&) = delete;
  TempFolder& operator=(const TempFolder&) = delete;
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }
  const std::filesystem::path& path() const { return path_; }
  /// Writes `bytes` to a file here and returns its path.
  std::filesystem::path file(const std::string& name, std::string_view bytes) const {
    std::filesystem::create_directories((path_ / name).parent_path());
    write_file(path_ / name, bytes);
    return path_ / name;
  }

 private:
  std::filesystem::path path_;
};

/// The message of the InputError that `call` throws, with its exit code before it: "3: ..".
template <typename Fn>
std::string error_of(Fn call) {
  try {
    call();
  } catch (const InputError& e) {
    return std::to_string(static_cast<int>(e.code())) + ": " + e.what();
  }
  return "no error";
}

}  // namespace tessera
