#include "tessera/base/json.h"

#include <cmath>
#include <limits>

#include "tessera/base/error.h"

namespace tessera {
namespace {

const Json* find(const Json& object, const std::string& key, const std::string& what) {
  if (!object.is_object()) {
    throw data_error("{}: wanted an object with '{}', found {}", what, key, object.type_name());
  }
  const auto place = object.find(key);
  return place == object.end() ? nullptr : &*place;
}

InputError wrong_type(const Json& value, const std::string& key, const std::string& what,
                      const char* wanted) {
  return data_error("{}: '{}' must be {}, found {}", what, key, wanted,
                    printable(value.dump(-1, ' ', true, Json::error_handler_t::replace)));
}

void read(const Json& value, const std::string& key, const std::string& what, Json& to) {
  if (!value.is_object()) throw wrong_type(value, key, what, "an object");
  to = value;
}

void read(const Json& value, const std::string& key, const std::string& what, std::string& to) {
  if (!value.is_string()) throw wrong_type(value, key, what, "text");
  to = value.get<std::string>();
}

void read(const Json& value, const std::string& key, const std::string& what, int64_t& to) {
  if (value.is_number_unsigned() &&
      value.get<uint64_t>() > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
    throw wrong_type(value, key, what, "a 64-bit integer");
  }
  if (!value.is_number_integer()) throw wrong_type(value, key, what, "an integer");
  to = value.get<int64_t>();
}

void read(const Json& value, const std::string& key, const std::string& what, double& to) {
  if (!value.is_number()) throw wrong_type(value, key, what, "a number");
  to = value.get<double>();
}

void read(const Json& value, const std::string& key, const std::string& what, bool& to) {
  if (!value.is_boolean()) throw wrong_type(value, key, what, "true or false");
  to = value.get<bool>();
}

}  // namespace

template <typename T>
T json_get(const Json& object, const std::string& key, const std::string& what) {
  const Json* value = find(object, key, what);
  if (!value) throw data_error("{}: '{}' is missing", what, key);
  T out{};
  read(*value, key, what, out);
  return out;
}

template <typename T>
T json_get(const Json& object, const std::string& key, const std::string& what,
           const T& otherwise) {
  const Json* value = find(object, key, what);
  if (!value || value->is_null()) return otherwise;
  T out{};
  read(*value, key, what, out);
  return out;
}

template Json json_get(const Json&, const std::string&, const std::string&);
template Json json_get(const Json&, const std::string&, const std::string&, const Json&);
template std::string json_get(const Json&, const std::string&, const std::string&);
template std::string json_get(const Json&, const std::string&, const std::string&,
                              const std::string&);
template int64_t json_get(const Json&, const std::string&, const std::string&);
template int64_t json_get(const Json&, const std::string&, const std::string&, const int64_t&);
template double json_get(const Json&, const std::string&, const std::string&);
template double json_get(const Json&, const std::string&, const std::string&, const double&);
template bool json_get(const Json&, const std::string&, const std::string&);
template bool json_get(const Json&, const std::string&, const std::string&, const bool&);

}  // namespace tessera
