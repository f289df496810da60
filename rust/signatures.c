// SPDX-License-Identifier: GPL-2.0
/*
 * The certificates that are built in, and what the kernel does with them: see keyring.rs, which is
 * the only user. A module without certificates needs none of it, and can be built for kernels that
 * do not have it.
 */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <linux/err.h>
#include <linux/kstrtox.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/printk.h>

#include "helpers.h"

#ifdef IMA_TRIM_CERT

#include <linux/cred.h>
#include <linux/key.h>
#include <linux/string.h>
#include <linux/verification.h>
#include <keys/asymmetric-type.h>

#if !IS_ENABLED(CONFIG_SYSTEM_DATA_VERIFICATION)
#error "CERT= needs a kernel with CONFIG_SYSTEM_DATA_VERIFICATION, which verifies signatures"
#endif

/* Made by tools/certificates, where the build leaves what it makes. */
#include <ima_trim_certificates.h>

/* It is only read. */
static bool require_signatures = true;

static const struct {
	const u8 *data;
	size_t size;
} certificates[] = { IMA_TRIM_CERTIFICATES };

/* The size of a built-in certificate, or 0 if there are not so many. */
size_t ima_trim_certificate(size_t index, const u8 **data)
{
	if (index >= ARRAY_SIZE(certificates))
		return 0;
	*data = certificates[index].data;
	return certificates[index].size;
}

/* A new keyring. The kernel searches it as its possessor; root may see what is in it. */
struct key *ima_trim_keyring(void)
{
	return keyring_alloc(".ima_trim", GLOBAL_ROOT_UID, GLOBAL_ROOT_GID, current_cred(),
			     KEY_POS_SEARCH | KEY_USR_VIEW | KEY_USR_READ,
			     KEY_ALLOC_NOT_IN_QUOTA | KEY_ALLOC_SET_KEEP, NULL, NULL);
}

/*
 * key_create_or_update() would need a right to write to the keyring, and with it somebody who has
 * it. It would also name keys by their subject, so that one could take another's place.
 */
int ima_trim_keyring_add(struct key *keyring, const char *name, const u8 *certificate, size_t size)
{
	struct key *key = key_alloc(&key_type_asymmetric, name, GLOBAL_ROOT_UID, GLOBAL_ROOT_GID,
				    current_cred(), KEY_POS_SEARCH | KEY_USR_VIEW,
				    KEY_ALLOC_NOT_IN_QUOTA | KEY_ALLOC_SET_KEEP, NULL);
	int ret;

	if (IS_ERR(key))
		return PTR_ERR(key);
	ret = key_instantiate_and_link(key, certificate, size, keyring, NULL);
	key_put(key);
	return ret;
}

/* From here on nothing can be linked into it. */
int ima_trim_keyring_seal(struct key *keyring)
{
	return keyring_restrict(make_key_ref(keyring, true), NULL, NULL);
}

void ima_trim_keyring_put(struct key *keyring)
{
	key_put(keyring);
}

struct content {
	u8 *to;
	size_t room;
	size_t *taken;
};

/* Called when the signature was found to be right. */
static int take_content(void *context, const void *data, size_t len, size_t header_len)
{
	struct content *content = context;

	if (len <= content->room)
		memcpy(content->to, data, len);
	*content->taken = len;
	return 0;
}

/*
 * @taken is left as it is unless the signature is right, and otherwise the length of what was
 * signed, which is in @content if it fits.
 */
int ima_trim_verify(struct key *keyring, const u8 *message, size_t size, u8 *content, size_t room,
		    size_t *taken)
{
	struct content context = { .to = content, .room = room, .taken = taken };

	return verify_pkcs7_signature(NULL, 0, message, size, keyring,
				      VERIFYING_UNSPECIFIED_SIGNATURE, take_content, &context);
}

#else /* !IMA_TRIM_CERT */

/* It is only read. */
static bool require_signatures;

size_t ima_trim_certificate(size_t index, const u8 **data)
{
	return 0;
}

struct key *ima_trim_keyring(void)
{
	return ERR_PTR(-EOPNOTSUPP);
}

int ima_trim_keyring_add(struct key *keyring, const char *name, const u8 *certificate, size_t size)
{
	return -EOPNOTSUPP;
}

int ima_trim_keyring_seal(struct key *keyring)
{
	return -EOPNOTSUPP;
}

void ima_trim_keyring_put(struct key *keyring)
{
}

int ima_trim_verify(struct key *keyring, const u8 *message, size_t size, u8 *content, size_t room,
		    size_t *taken)
{
	return -EOPNOTSUPP;
}

#endif /* !IMA_TRIM_CERT */

/* A parameter because that is where one looks, and that nobody can set to anything else. */
static int set_require_signatures(const char *value, const struct kernel_param *param)
{
	bool on = true;
	int ret = value ? kstrtobool(value, &on) : 0;

	if (ret)
		return ret;
	if (on == require_signatures)
		return 0;
	pr_err("require_signatures=%d: this module was built %s certificates, which decides it\n", on,
	       require_signatures ? "with" : "without");
	return -EPERM;
}

static const struct kernel_param_ops require_signatures_ops = {
	.flags = KERNEL_PARAM_OPS_FL_NOARG,
	.set = set_require_signatures,
	.get = param_get_bool,
};

module_param_cb(require_signatures, &require_signatures_ops, &require_signatures, 0444);
MODULE_PARM_DESC(require_signatures, "take signed requests only: decided by make CERT=");
