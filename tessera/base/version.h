#pragma once

namespace tessera {

/// The version of this library and program; CMakeLists.txt carries the same number.
inline constexpr const char* kVersion = "1.0.0";

}  // namespace tessera
