#pragma once

#include <string_view>

namespace tessera {

/// web/report/report.html, put into the library when it is built.
extern const std::string_view kReportTemplate;

}  // namespace tessera
