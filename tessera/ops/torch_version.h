#pragma once

namespace tessera {

/// The libtorch this library was built with, "2.13.0".
const char* torch_version();

}  // namespace tessera
