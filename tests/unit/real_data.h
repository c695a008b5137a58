#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tessera {

/// Folder of real data: $TESSERA_DATA/<set>, default data/<set>.
inline std::filesystem::path real_data(const std::string& set) {
  const char* root = std::getenv("TESSERA_DATA");
  return std::filesystem::path(root ? root : "data") / set;
}

/// Ends a test with one line where a real data set is not there.
inline std::string why_without(const std::string& set) {
  return "no " + real_data(set).string() + ": set TESSERA_DATA to the folder of real data";
}

}  // namespace tessera
