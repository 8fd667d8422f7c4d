// Runs an integer-only network once with TVM's virtual machine: run OUT INPUT... OUTPUT...
//
// OUT is what `qdeploy convert --to tvm` wrote: model.so, and tvm.json, which says type and shape of every input and
// output. The other arguments are files of raw numbers, inputs first, both in the order of tvm.json. Threads are TVM's:
// TVM_NUM_THREADS=1 for one. The Makefile builds it against TVM's wheels; Python takes no part when it runs.
#include <tvm/ffi/container/array.h>
#include <tvm/ffi/container/tensor.h>
#include <tvm/ffi/dtype.h>
#include <tvm/ffi/extra/json.h>
#include <tvm/ffi/extra/module.h>
#include <tvm/ffi/function.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace ffi = tvm::ffi;
namespace json = tvm::ffi::json;

// Memory of a tensor, aligned to a cache line as TVM's kernels expect it.
struct Memory {
    void AllocData(DLTensor *tensor) {
        size_t bytes = (ffi::GetDataSize(*tensor) + 63) / 64 * 64;
        tensor->data = std::aligned_alloc(64, bytes ? bytes : 64);
        if (!tensor->data) throw std::runtime_error("out of memory");
    }
    void FreeData(DLTensor *tensor) { std::free(tensor->data); }
};

static json::Array listed(const json::Object &manifest, const char *key) {
    return manifest[ffi::String(key)].cast<json::Array>();
}

// A tensor of the type and shape that an entry of tvm.json states.
static ffi::Tensor tensor_of(const json::Object &entry) {
    std::vector<int64_t> shape;
    for (const ffi::Any &extent : listed(entry, "shape")) shape.push_back(extent.cast<int64_t>());
    DLDataType dtype = ffi::StringToDLDataType(entry[ffi::String("dtype")].cast<ffi::String>());
    return ffi::Tensor::FromNDAlloc(Memory(), ffi::ShapeView(shape.data(), shape.size()), dtype, {kDLCPU, 0});
}

static void read(const ffi::Tensor &tensor, const std::string &path) {
    std::ifstream file(path, std::ios::binary);
    std::streamsize bytes = static_cast<std::streamsize>(ffi::GetDataSize(tensor));
    if (!file.read(static_cast<char *>(tensor.data_ptr()), bytes) || file.peek() != std::ifstream::traits_type::eof())
        throw std::runtime_error(path + " does not hold " + std::to_string(bytes) + " bytes");
}

static void write(const ffi::Tensor &tensor, const std::string &path) {
    std::ofstream file(path, std::ios::binary);
    file.write(static_cast<const char *>(tensor.data_ptr()), static_cast<std::streamsize>(ffi::GetDataSize(tensor)));
    if (!file.flush()) throw std::runtime_error(path + " cannot be written");
}

// A virtual machine over the library, with a pooled allocator on the CPU; both must outlive its functions.
static ffi::Module machine(const ffi::Module &library) {
    constexpr int pooled = 2;
    ffi::Module made = library->GetFunction("vm_load_executable").value()().cast<ffi::Module>();
    made->GetFunction("vm_initialization").value()(static_cast<int>(kDLCPU), 0, pooled);
    return made;
}

static void run(const std::string &folder, const std::vector<std::string> &files) {
    std::ifstream file(folder + "/tvm.json");
    std::stringstream text;
    text << file.rdbuf();
    if (!file) throw std::runtime_error(folder + "/tvm.json cannot be read");
    json::Object manifest = json::Parse(text.str()).cast<json::Object>();
    json::Array inputs = listed(manifest, "inputs"), outputs = listed(manifest, "outputs");
    if (files.size() != inputs.size() + outputs.size())
        throw std::runtime_error("the network has " + std::to_string(inputs.size()) + " inputs and " +
                                 std::to_string(outputs.size()) + " outputs: run OUT INPUT... OUTPUT...");

    std::vector<ffi::Any> given;
    for (size_t i = 0; i < inputs.size(); ++i) {
        ffi::Tensor tensor = tensor_of(inputs[i].cast<json::Object>());
        read(tensor, files[i]);
        given.emplace_back(tensor);
    }
    std::vector<ffi::AnyView> arguments(given.begin(), given.end());

    ffi::Module library = ffi::Module::LoadFromFile(folder + "/model.so");
    ffi::Module vm = machine(library);
    ffi::Any result;
    vm->GetFunction("main").value().CallPacked(arguments.data(), static_cast<int>(arguments.size()), &result);
    ffi::Array<ffi::Tensor> found = result.cast<ffi::Array<ffi::Tensor>>();
    for (size_t i = 0; i < outputs.size(); ++i) write(found[i], files[inputs.size() + i]);
}

int main(int argc, char **argv) {
    if (argc < 2) return std::cerr << "usage: run OUT INPUT... OUTPUT...\n", 2;
    try {
        run(argv[1], std::vector<std::string>(argv + 2, argv + argc));
    } catch (const std::exception &error) {  // TVM's errors are of this kind too
        return std::cerr << error.what() << "\n", 1;
    }
    return 0;
}
