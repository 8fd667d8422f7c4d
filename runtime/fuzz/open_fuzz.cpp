// Opens what the fuzzer makes, checksums of header and front mended first, so that validate() is what is tried.
//   clang++-14 -std=c++17 -g -O1 -fsanitize=fuzzer,address,undefined runtime/fuzz/open_fuzz.cpp runtime/src/*.cpp ...
// With QDEPLOY_FUZZ_SEED=path the first run writes a good model there, to begin from.
#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "../test/tiny_model.h"

extern "C" int LLVMFuzzerInitialize(int*, char***) {
  const char* path = std::getenv("QDEPLOY_FUZZ_SEED");
  FILE* f = path ? std::fopen(path, "wb") : nullptr;
  if (f == nullptr) return 0;
  tiny::Bytes model = tiny::decoder();
  std::fwrite(model.data(), 1, model.size(), f);
  std::fclose(f);
  return 0;
}

// The front comes from the fuzzer; what lies behind it is the good model's, or the inputs would be 400 KB each.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t n) {
  static const tiny::Bytes good = tiny::decoder();
  tiny::Bytes file = good;
  std::copy(data, data + std::min(n, file.size()), file.begin());
  tiny::fix_crcs(&file);
  qd_source source = tiny::source(file);
  qd_options options;
  qd_options_init(&options);
  options.threads = 1;
  options.flags = QD_NO_GROW | QD_NO_VERIFY;
  qd_model* model = nullptr;
  qd_error err = QD_INIT(qd_error);
  if (qd_open_source(&source, &options, &model, &err) == QD_OK) qd_close(model);
  return 0;
}
