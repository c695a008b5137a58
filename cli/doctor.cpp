#include "cli/cli.h"

namespace tessera::cli {

void add_doctor(CLI::App&, Common&) {}

}  // namespace tessera::cli
