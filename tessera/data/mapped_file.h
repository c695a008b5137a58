#pragma once

#include <filesystem>
#include <memory>
#include <string_view>

namespace tessera {

/// The bytes of a file, mapped read-only for as long as `owner` lives.
struct MappedFile {
  std::shared_ptr<const void> owner;
  std::string_view bytes;
};

/// Exit 3 when `path` is missing, unreadable or no regular file. An empty file maps to no bytes.
MappedFile map_file(const std::filesystem::path& path);

}  // namespace tessera
