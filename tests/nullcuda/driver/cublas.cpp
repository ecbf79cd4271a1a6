// cuBLAS and cuBLASLt: products are counted by the types they compute in.

#include "null_cuda.h"

#include <cublasLt.h>
#include <cublas_v2.h>

#include <cstdlib>
#include <cstring>

using namespace null_cuda;

namespace {

constexpr size_t HANDLE_BYTES = 4096;  // more than any descriptor; what is in them is never read
constexpr size_t VERSION_SHOWN = 130000;

thread_local cublasMath_t math_mode = CUBLAS_DEFAULT_MATH;

template <typename Handle>
cublasStatus_t make(Handle* handle) {
    *handle = reinterpret_cast<Handle>(std::calloc(1, HANDLE_BYTES));
    return CUBLAS_STATUS_SUCCESS;
}

template <typename Handle>
cublasStatus_t drop(Handle handle) {
    std::free(const_cast<void*>(static_cast<const void*>(handle)));
    return CUBLAS_STATUS_SUCCESS;
}

std::string type_name(cudaDataType type) {
    switch (type) {
        case CUDA_R_16F: return "fp16";
        case CUDA_R_16BF: return "bf16";
        case CUDA_R_32F: return math_mode == CUBLAS_TF32_TENSOR_OP_MATH ? "tf32" : "fp32";
        case CUDA_R_64F: return "fp64";
        default: return "type " + std::to_string(type);
    }
}

cublasStatus_t product(const std::string& function, cudaDataType type) {
    count_launch(function + " " + type_name(type));
    return CUBLAS_STATUS_SUCCESS;
}

}  // namespace

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t* handle) {
    touch("cuBLAS handle");
    return make(handle);
}

cublasStatus_t cublasDestroy_v2(cublasHandle_t handle) { return drop(handle); }

cublasStatus_t cublasSetMathMode(cublasHandle_t, cublasMath_t mode) {
    math_mode = mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetMathMode(cublasHandle_t, cublasMath_t* mode) {
    *mode = math_mode;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGetPointerMode_v2(cublasHandle_t, cublasPointerMode_t* mode) {
    *mode = CUBLAS_POINTER_MODE_HOST;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasGemmEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const void*,
                            const void*, cudaDataType type, int, const void*, cudaDataType, int, const void*, void*,
                            cudaDataType, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return product("cublasGemmEx", type);
}

cublasStatus_t cublasGemmStridedBatchedEx(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                          const void*, const void*, cudaDataType type, int, long long, const void*,
                                          cudaDataType, int, long long, const void*, void*, cudaDataType, int,
                                          long long, int, cublasComputeType_t, cublasGemmAlgo_t) {
    return product("cublasGemmStridedBatchedEx", type);
}

cublasStatus_t cublasSgemm_v2(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int, const float*,
                              const float*, int, const float*, int, const float*, float*, int) {
    return product("cublasSgemm", CUDA_R_32F);
}

cublasStatus_t cublasSgemmStridedBatched(cublasHandle_t, cublasOperation_t, cublasOperation_t, int, int, int,
                                         const float*, const float*, int, long long, const float*, int, long long,
                                         const float*, float*, int, long long, int) {
    return product("cublasSgemmStridedBatched", CUDA_R_32F);
}

size_t cublasLtGetVersion() { return VERSION_SHOWN; }

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* made, cublasComputeType_t, cudaDataType_t) {
    return make(made);
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t gone) { return drop(gone); }

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* made) { return make(made); }

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t gone) { return drop(gone); }

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* made, cudaDataType type, uint64_t, uint64_t,
                                          int64_t) {
    const cublasStatus_t status = make(made);
    std::memcpy(*made, &type, sizeof type);  // for cublasLtMatmul, which counts by it
    return status;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t gone) { return drop(gone); }

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatmulPreference_t, int,
                                              cublasLtMatmulHeuristicResult_t results[], int* number) {
    std::memset(&results[0], 0, sizeof results[0]);
    *number = 1;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t, const void*, const void*,
                              cublasLtMatrixLayout_t layout, const void*, cublasLtMatrixLayout_t, const void*,
                              const void*, cublasLtMatrixLayout_t, void*, cublasLtMatrixLayout_t,
                              const cublasLtMatmulAlgo_t*, void*, size_t, cudaStream_t) {
    cudaDataType type;
    std::memcpy(&type, layout, sizeof type);
    return product("cublasLtMatmul", type);
}

}  // extern "C"
