#pragma once

#include <map>
#include <string>

namespace tessera {

/// A model with something to write beside its results; found by dynamic_cast.
class ReportFiles {
 public:
  virtual ~ReportFiles() = default;
  /// Contents by file name, of the model as it stands.
  virtual std::map<std::string, std::string> report_files() = 0;
};

}  // namespace tessera
