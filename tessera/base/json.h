#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>

namespace tessera {

/// JSON with keys in the order of insertion, as users meet it in files and on stdout.
using Json = nlohmann::ordered_json;

/// The value of `key` in a document that may be damaged, for T = Json (an object), std::string,
/// int64_t, double or bool. Exit 3 naming `what`, the key, and what was found, when `object` is no
/// object, the key is missing or its value has another type (2.7 is no integer).
template <typename T>
T json_get(const Json& object, const std::string& key, const std::string& what);

/// The same with `otherwise` for a key that is missing or null.
template <typename T>
T json_get(const Json& object, const std::string& key, const std::string& what, const T& otherwise);

}  // namespace tessera
