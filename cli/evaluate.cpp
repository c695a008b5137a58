#include "cli/cli.h"

namespace tessera::cli {

void add_evaluate(CLI::App&, Common&) {}

}  // namespace tessera::cli
