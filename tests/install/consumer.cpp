// A program outside the tree: it sees the installed headers and library only.
#include <cstdio>
#include <string>

#include "tessera/base/error.h"
#include "tessera/data/vocabulary.h"

int main() {
  tessera::Vocabulary ids;
  ids.add("a");
  if (ids.find("a") != 0) return 1;
  const std::string hint = tessera::did_you_mean("lightgnc", {"BM3", "LightGCN"});
  if (hint == " (did you mean 'LightGCN'?)") return 0;
  std::fprintf(stderr, "unexpected hint: %s\n", hint.c_str());
  return 1;
}
