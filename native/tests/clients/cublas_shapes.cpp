// Matrix products through cuBLAS and cuBLASLt, each with a shape of its own.
#include "linked.hpp"

extern "C" {
int cublasCreate_v2(void** out);
int cublasDestroy_v2(void* handle);
int cublasSetStream_v2(void* handle, CUstream stream);
int cublasSetWorkspace_v2(void* handle, void* memory, std::size_t bytes);
int cublasSgemm_v2(void*, int, int, int, int, int, const float*, const float*, int, const float*, int, const float*,
                   float*, int);
int cublasHgemm(void*, int, int, int, int, int, const void*, const void*, int, const void*, int, const void*, void*,
                int);
int cublasGemmEx(void*, int, int, int, int, int, const void*, const void*, int, int, const void*, int, int, const void*,
                 void*, int, int, int, int);
int cublasGemmStridedBatchedEx(void*, int, int, int, int, int, const void*, const void*, int, int, long long,
                               const void*, int, int, long long, const void*, void*, int, int, long long, int, int,
                               int);
int cublasGemmBatchedEx(void*, int, int, int, int, int, const void*, const void* const*, int, int, const void* const*,
                        int, int, const void*, void* const*, int, int, int, int, int);
int cublasLtCreate(void** out);
int cublasLtDestroy(void* handle);
int cublasLtMatrixLayoutDestroy(void* layout);
int cublasLtMatmulDescDestroy(void* description);
int cublasLtMatrixLayoutCreate(void** out, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t leading);
int cublasLtMatmulDescCreate(void** out, int compute, int scale);
int cublasLtMatmul(void*, void*, const void*, const void*, void*, const void*, void*, const void*, const void*, void*,
                   void*, void*, const void*, void*, std::size_t, CUstream);
}

int main() {
    constexpr int kBfloat16 = 14;
    constexpr int kFloat = 0;
    client::start();
    const CUstream stream = client::stream();
    void* handle = nullptr;
    client::must(cublasCreate_v2(&handle), "cublasCreate");
    client::must(cublasSetStream_v2(handle, stream), "cublasSetStream");
    client::must(cublasSetWorkspace_v2(handle, nullptr, 0), "cublasSetWorkspace");
    const float one = 1;
    const float zero = 0;
    float* const memory = reinterpret_cast<float*>(0x10000);  // never read
    const void* batch_in[4] = {memory, memory, memory, memory};
    void* batch_out[4] = {memory, memory, memory, memory};
    client::must(cublasSgemm_v2(handle, 0, 0, 1024, 512, 256, &one, memory, 1024, memory, 256, &zero, memory, 1024),
                 "cublasSgemm");
    client::must(cublasHgemm(handle, 0, 0, 512, 512, 512, &one, memory, 512, memory, 512, &zero, memory, 512),
                 "cublasHgemm");
    client::must(cublasGemmEx(handle, 1, 0, 4096, 2048, 1024, &one, memory, kBfloat16, 1024, memory, kBfloat16, 1024,
                              &zero, memory, kBfloat16, 4096, 68, -1),
                 "cublasGemmEx");
    client::must(cublasGemmStridedBatchedEx(handle, 0, 0, 128, 128, 64, &one, memory, kBfloat16, 128, 8192, memory,
                                            kBfloat16, 64, 8192, &zero, memory, kBfloat16, 128, 16384, 32, 68, -1),
                 "cublasGemmStridedBatchedEx");
    client::must(cublasGemmBatchedEx(handle, 0, 0, 256, 256, 128, &one, batch_in, kFloat, 256, batch_in, kFloat, 128,
                                     &zero, batch_out, kFloat, 256, 4, 68, -1),
                 "cublasGemmBatchedEx");
    void *light = nullptr, *a = nullptr, *b = nullptr, *c = nullptr, *operation = nullptr;
    client::must(cublasLtCreate(&light), "cublasLtCreate");
    client::must(cublasLtMatrixLayoutCreate(&a, kBfloat16, 2048, 768, 2048), "cublasLtMatrixLayoutCreate");
    client::must(cublasLtMatrixLayoutCreate(&b, kBfloat16, 768, 3072, 768), "cublasLtMatrixLayoutCreate");
    client::must(cublasLtMatrixLayoutCreate(&c, kBfloat16, 2048, 3072, 2048), "cublasLtMatrixLayoutCreate");
    client::must(cublasLtMatmulDescCreate(&operation, 68, 0), "cublasLtMatmulDescCreate");
    client::must(cublasLtMatmul(light, operation, &one, memory, a, memory, b, &zero, memory, c, memory, c, nullptr,
                                nullptr, 0, stream),
                 "cublasLtMatmul");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    for (void* layout : {a, b, c}) client::must(cublasLtMatrixLayoutDestroy(layout), "cublasLtMatrixLayoutDestroy");
    client::must(cublasLtMatmulDescDestroy(operation), "cublasLtMatmulDescDestroy");
    client::must(cublasLtDestroy(light), "cublasLtDestroy");
    client::must(cublasDestroy_v2(handle), "cublasDestroy");
    std::printf("{\"launches\": %llu, \"object\": \"%s\", \"light_object\": \"%s\"}\n",
                fakecuda_calls("cuLaunchKernel"), client::object_of(&cublasGemmEx).c_str(),
                client::object_of(&cublasLtMatmul).c_str());
    return 0;
}
